"""`POST /api/batches/{id}/retry`: the requests of an ended batch that got no answer, as a batch of their own."""

import asyncio
from typing import Any

from litestar import Request, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from batchfile.errors import InvalidFile
from batchfile.ledger.records import BatchRecord
from batchfile.plan.submit import retry as retry_batch

from ..create import KEY_CHARS_MAX, made_before
from ..http.auth import Caller
from ..http.errors import Refusal
from ..http.openapi import READ, problems
from ..service import Service
from . import schemas, serializers
from .routes import BATCHES


@post(
    BATCHES + "/{batch_id:str}/retry",
    status_code=200,
    responses=problems(READ, 400, 422),
    tags=["batches"],
    summary="Run again what did not succeed",
)
async def retry(
    request: Request[Any, Any, Any],
    batch_id: FromPath[str],
    service: NamedDependency[Service],
    caller: NamedDependency[Caller],
) -> schemas.Batch:
    """A new batch of the requests without an answer, with `retry_of` in its metadata; the old one stays as it is.

    With an `Idempotency-Key` a repeated call gives the same batch.
    """
    key = request.headers.get("idempotency-key")
    if key is not None and len(key) > KEY_CHARS_MAX:
        raise InvalidFile(f"Idempotency-Key: is longer than {KEY_CHARS_MAX} characters; send a UUID, say")

    def act() -> BatchRecord:
        batch = service.record(caller, batch_id)
        try:
            service.check_room(caller)
        except Refusal:  # but it may be the retry that made a batch already
            made = made_before(service.ledger, f"retry {batch.batch_id}", caller.tenant, key, None)
            if made is None:
                raise
            return made
        return retry_batch(service.ledger, batch, idempotency_key=key or None)

    async with service.creating:
        made = await asyncio.to_thread(act)
    return serializers.batch(await asyncio.to_thread(service.status, caller, made.batch_id))
