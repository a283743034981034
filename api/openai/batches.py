"""`/v1/batches`, as OpenAI's clients use it: batches of uploaded files."""

import asyncio
import hashlib
import re
import secrets
from typing import Annotated, Any

from litestar import Request, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter

from batchfile.files import stored_files
from batchfile.files.stored_files import file_input, source
from batchfile.ledger import batches
from batchfile.ledger.status import BatchStatus
from batchfile.plan import pending
from batchfile.types import Defaults

from ..create import get_or_create, made_before
from ..http.auth import Caller
from ..http.errors import Refusal, not_found
from ..http.openapi import READ, problems
from ..http.request_bodies import retry_count
from ..native.schemas import OpenAIProblem
from ..ops.background import BackgroundTasks
from ..service import Service, Shown
from . import schemas as shapes
from . import serializers as views

BATCHES = "/v1/batches"
BATCH_ID = re.compile(r"batch_[0-9a-f]{32}")
OF_FILES = Shown(ids_like=BATCH_ID, has=lambda status: file_input(status.batch) is not None)
BODY_BYTES_MAX = 1024 * 1024


@post(
    BATCHES,
    status_code=200,
    request_max_body_size=BODY_BYTES_MAX,
    responses=problems(READ, 400, 413, 422, shape=OpenAIProblem),
    tags=["openai batches"],
    summary="Submit a batch of a file",
)
async def create(
    data: JSONBody[shapes.CreateBatch],
    request: Request[Any, Any, Any],
    service: NamedDependency[Service],
    background: NamedDependency[BackgroundTasks],
    caller: NamedDependency[Caller],
) -> shapes.Batch:
    """Its file is read and checked after the answer: a batch of a wrong file turns `failed` and says why."""
    key, retries = request.headers.get("idempotency-key"), retry_count(request)
    arrived_at = service.ledger.clock.monotonic()

    def act() -> BatchStatus:
        batch_id = _create(service, caller, data, key, retries, arrived_at)
        background.wake(batch_id)
        return service.status(caller, batch_id)

    return views.batch(await asyncio.to_thread(act))


@get(BATCHES, responses=problems(READ, 400, shape=OpenAIProblem), tags=["openai batches"], summary="Batches of files")
async def list_batches(
    service: NamedDependency[Service],
    caller: NamedDependency[Caller],
    limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
    after: Annotated[str | None, QueryParameter(description="The last id of the page before.")] = None,
) -> shapes.BatchPage:
    """Newest first."""
    page = await asyncio.to_thread(lambda: service.page(caller, limit=limit, after=after, shown=OF_FILES))
    data = [views.batch(status) for status in page.data]
    return shapes.BatchPage(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=page.has_more,
    )


@get(
    BATCHES + "/{batch_id:str}",
    responses=problems(READ, shape=OpenAIProblem),
    tags=["openai batches"],
    summary="How far it is",
)
async def status(
    batch_id: FromPath[str], service: NamedDependency[Service], caller: NamedDependency[Caller]
) -> shapes.Batch:
    return views.batch(await asyncio.to_thread(_status, service, caller, batch_id))


@post(
    BATCHES + "/{batch_id:str}/cancel",
    status_code=200,
    responses=problems(READ, 400, shape=OpenAIProblem),
    tags=["openai batches"],
    summary="End early",
)
async def cancel(
    batch_id: FromPath[str],
    service: NamedDependency[Service],
    background: NamedDependency[BackgroundTasks],
    caller: NamedDependency[Caller],
) -> shapes.Batch:
    """What has finished keeps its results, the rest goes to the error file."""

    def act() -> BatchStatus:
        before = _status(service, caller, batch_id)
        if before.batch.state == "ended" and before.is_known:
            raise Refusal(400, f"Cannot cancel a batch with status '{views.batch(before).status}'.")
        after = service.cancel(caller, batch_id)
        background.wake(batch_id)
        return after

    return views.batch(await asyncio.to_thread(act))


def _create(
    service: Service,
    caller: Caller,
    data: shapes.CreateBatch,
    key: str | None,
    retries: int | None,
    arrived_at: float,
) -> str:
    """The id of the batch: a new one, or for a repeated create the one that it made before."""
    ledger, settings = service.ledger, service.settings
    digest = hashlib.sha256(data.model_dump_json().encode()).hexdigest()
    made = made_before(ledger, digest, caller.tenant, key, retries)
    if made is not None:
        return made.batch_id
    service.check_room(caller)
    file = stored_files.read_file(ledger, caller.tenant, data.input_file_id)
    if file is None:
        detail = f"input_file_id: there is no file {data.input_file_id[:80]!r}; upload it with purpose 'batch' first"
        raise Refusal(400, detail, param="input_file_id")
    keyed = get_or_create(ledger, f"batch_{secrets.token_hex(16)}", digest, caller.tenant, key, retries, arrived_at)
    if not keyed.is_first and batches.read_batch(ledger, keyed.batch_id) is not None:
        return keyed.batch_id
    draft = batches.Draft(
        batch_id=keyed.batch_id,
        routing=settings.routing(),
        defaults=Defaults(),
        tenant=caller.tenant,
        metadata=data.metadata or {},
        created_at=keyed.created_at,
    )
    made_of = source(
        ledger,
        file,
        endpoint=data.endpoint,
        requests_max=settings.api.requests_max,
        kept_s=None if data.output_expires_after is None else float(data.output_expires_after.seconds),
    )
    return pending.create(ledger, draft, made_of).batch_id


def _status(service: Service, caller: Caller, batch_id: str) -> BatchStatus:
    if not BATCH_ID.fullmatch(batch_id):
        raise not_found()
    status = service.seen(caller, batch_id)
    if file_input(status.batch) is None:
        raise not_found()
    return status
