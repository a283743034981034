"""From the body of a request to a batch: spooled to disk, then created in a thread. Knows the headers, no JSON."""

import asyncio
import re
from dataclasses import dataclass
from typing import Any

from litestar import Request
from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIType

from batchfile.ledger.records import BatchRecord

from ..create import CreateOptions, create_batch
from ..service import Service
from .auth import Caller
from .errors import Refusal
from .spool import SpoolLimits, spool

RETRY_COUNT = "x-stainless-retry-count"  # the official SDKs number their attempts from 0
NUMBER = re.compile(r"[0-9]{1,9}")

_REQUEST = Schema(
    type=OpenAPIType.OBJECT,
    required=["custom_id", "params"],
    properties={
        "custom_id": Schema(
            type=[OpenAPIType.STRING, OpenAPIType.INTEGER],
            min_length=1,
            description="Comes back byte for byte; a whole number as text.",
        ),
        "params": Schema(type=OpenAPIType.OBJECT, description="`messages`, `system`, `max_tokens`, sampling."),
        "metadata": Schema(type=OpenAPIType.OBJECT, description="Free, but `model_hint` names a pool or a model."),
    },
)
_DOCUMENT = Schema(
    type=OpenAPIType.OBJECT,
    required=["stage", "requests"],
    additional_properties=False,
    properties={
        "stage": Schema(type=OpenAPIType.STRING),
        "model_hint": Schema(type=OpenAPIType.STRING, description="For all requests that name none."),
        "requests": Schema(type=OpenAPIType.ARRAY, items=_REQUEST, min_items=1),
    },
)


@dataclass
class JSON_OR_LINES(Operation):
    """Documents the body of routes that read it as a stream."""

    def __post_init__(self) -> None:
        self.request_body = RequestBody(
            required=True,
            content={
                "application/json": OpenAPIMediaType(schema=_DOCUMENT),
                "application/x-ndjson": OpenAPIMediaType(schema=Schema(type=OpenAPIType.STRING, min_length=1)),
            },
        )


async def create_from(
    request: Request[Any, Any, Any],
    service: Service,
    caller: Caller,
    stage: str | None,
    *,
    needs_stage: bool = True,
    create_options: CreateOptions | None = None,
) -> BatchRecord:
    """Raises: what `api.http.errors` has answers for."""
    headers = request.headers
    arrived_at = service.ledger.clock.monotonic()
    full = None
    try:
        await asyncio.to_thread(service.check_room, caller)
    except Refusal as refusal:
        if not headers.get("idempotency-key") and not retry_count(request):
            raise
        full = refusal  # but it may be the create of a batch that is there already
    limits = SpoolLimits.of(service.settings.api)
    length = headers.get("content-length")
    body = spool(
        request.stream(),
        content_encoding=headers.get("content-encoding"),
        content_length=int(length) if length else None,
        limits=limits,
    )
    async with body as spooled, service.creating:
        return await asyncio.to_thread(
            lambda: create_batch(
                service.ledger,
                service.settings,
                spooled,
                content_type=headers.get("content-type"),
                stage_query=stage,
                needs_stage=needs_stage,
                tenant=caller.tenant,
                idempotency_key=headers.get("idempotency-key"),
                retry_count=retry_count(request),
                arrived_at=arrived_at,
                full=full,
                create_options=create_options,
            )
        )


def retry_count(request: Request[Any, Any, Any]) -> int | None:
    """Which attempt of an official SDK this is, from 0; None: of another client."""
    given = request.headers.get(RETRY_COUNT, "")
    return int(given) if NUMBER.fullmatch(given) else None
