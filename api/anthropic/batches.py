"""`/v1/messages/batches`: the stage contract, exactly as the Node app speaks it, and Anthropic's Message Batches.

Two dialects share the path; `api.http.negotiation` says which one an answer is in. Any batch can be read in both.
"""

import asyncio
from typing import Annotated, Any

from litestar import Request, Response, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter

from batchfile.lines.formats.anthropic import anthropic_lines
from batchfile.lines.formats.stage import stage_document, stage_lines

from ..http.auth import Caller
from ..http.errors import Refusal
from ..http.negotiation import BATCHES, NegotiatedFormat
from ..http.openapi import CREATE, JSON_LINES, OR_LINES, READ, STAGE_RESULTS, problems
from ..http.request_bodies import JSON_OR_LINES, create_from
from ..http.responses import own_url, stream
from ..native import schemas as native_schemas
from ..native import serializers as native_serializers
from ..ops.background import BackgroundTasks
from ..service import PAGE_MAX, Service
from . import schemas as anthropic_schemas
from . import serializers as anthropic_serializers

ONE = BATCHES + "/{batch_id:str}"
PROBLEM = native_schemas.Problem | anthropic_schemas.ErrorBody


@post(
    BATCHES,
    status_code=200,
    request_max_body_size=None,  # the spool counts
    operation_class=JSON_OR_LINES,
    responses=problems(CREATE, shape=PROBLEM),
    tags=["messages"],
    summary="Submit a batch",
)
async def create(
    request: Request[Any, Any, Any],
    service: NamedDependency[Service],
    caller: NamedDependency[Caller],
    negotiated: NamedDependency[NegotiatedFormat],
    stage: Annotated[
        str | None, QueryParameter(description="Of `application/x-ndjson` bodies, which name none.")
    ] = None,
) -> native_schemas.BatchId | anthropic_schemas.MessageBatch:
    """Create a batch of requests. Any of its requests that can not run becomes an errored result.

    Of one stage, or with `anthropic-version` and no `stage`: of whatever `params.model` each request names.
    """
    batch = await create_from(request, service, caller, stage, needs_stage=negotiated.dialect != "anthropic")
    if negotiated.dialect == "stage" or (batch.stage is not None and not negotiated.is_asked):
        return native_schemas.BatchId(id=batch.batch_id)
    status = await asyncio.to_thread(service.status, caller, batch.batch_id)
    return anthropic_serializers.message_batch(status, own_url(request, service.settings.api))


@get(BATCHES, responses=problems(READ, 400, shape=PROBLEM), tags=["messages"], summary="Batches, newest first")
async def list_batches(
    request: Request[Any, Any, Any],
    service: NamedDependency[Service],
    caller: NamedDependency[Caller],
    limit: Annotated[int, QueryParameter(ge=1, le=PAGE_MAX)] = 20,
    after_id: Annotated[str | None, QueryParameter(description="Only batches that are older than this one.")] = None,
    before_id: Annotated[str | None, QueryParameter(description="Only the next newer ones than this one.")] = None,
) -> anthropic_schemas.MessageBatchPage:
    after, before = after_id or None, before_id or None
    if after and before:
        raise Refusal(400, "after_id and before_id: give one of them, a page goes in one direction")
    found = await asyncio.to_thread(lambda: service.page(caller, limit=limit, after=after, before=before))
    return anthropic_serializers.page(found, own_url(request, service.settings.api))


@get(ONE, responses=problems(READ, shape=PROBLEM), tags=["messages"], summary="How far a batch is")
async def status(
    request: Request[Any, Any, Any],
    batch_id: FromPath[str],
    service: NamedDependency[Service],
    caller: NamedDependency[Caller],
    negotiated: NamedDependency[NegotiatedFormat],
) -> native_schemas.StageStatus | anthropic_schemas.MessageBatch:
    """Counts are live and only ever grow."""
    if negotiated.dialect == "stage":
        return native_serializers.stage_status(await asyncio.to_thread(service.status, caller, batch_id))
    found = await asyncio.to_thread(service.seen, caller, batch_id)
    return anthropic_serializers.message_batch(found, own_url(request, service.settings.api))


@get(
    ONE + "/results",
    operation_class=OR_LINES,
    responses=problems(READ, 400, shape=PROBLEM) | STAGE_RESULTS,
    tags=["messages"],
    summary="The results of a batch",
)
async def results(
    request: Request[Any, Any, Any],
    batch_id: FromPath[str],
    service: NamedDependency[Service],
    caller: NamedDependency[Caller],
    negotiated: NamedDependency[NegotiatedFormat],
) -> Response[Any]:
    """One result for each request, in the order of the input; JSON lines where `application/x-ndjson` is accepted,
    and always in Anthropic's dialect.
    """
    if negotiated.dialect == "anthropic":
        found = await asyncio.to_thread(service.record, caller, batch_id)
        if found.state != "ended":
            raise Refusal(404, "The batch has not ended: its results_url is null until there are results")
        chunks = await asyncio.to_thread(service.results, caller, batch_id)
        return await stream(request, anthropic_lines(chunks, batch_id), JSON_LINES)
    chunks = await asyncio.to_thread(service.results, caller, batch_id)
    if JSON_LINES in request.headers.get("accept", ""):
        return await stream(request, stage_lines(chunks), JSON_LINES)
    return await stream(request, stage_document(chunks), "application/json")


@post(
    ONE + "/cancel",
    status_code=200,
    responses=problems(READ, 400, shape=PROBLEM),
    tags=["messages"],
    summary="End early",
)
async def cancel(
    request: Request[Any, Any, Any],
    batch_id: FromPath[str],
    service: NamedDependency[Service],
    caller: NamedDependency[Caller],
    background: NamedDependency[BackgroundTasks],
) -> anthropic_schemas.MessageBatch:
    """No further request starts; finished ones keep their results. A batch that has ended can not be canceled."""
    before = await asyncio.to_thread(service.seen, caller, batch_id)
    if before.batch.state == "ended" and before.is_known:
        raise Refusal(400, "The batch has ended already; its results are final")
    found = await asyncio.to_thread(service.cancel, caller, batch_id)
    background.wake(batch_id)
    return anthropic_serializers.message_batch(found, own_url(request, service.settings.api))


@delete(ONE, status_code=200, responses=problems(READ, 400, shape=PROBLEM), tags=["messages"], summary="Delete")
async def remove(
    batch_id: FromPath[str], service: NamedDependency[Service], caller: NamedDependency[Caller]
) -> anthropic_schemas.DeletedMessageBatch:
    """Only an ended batch can be deleted. Downloads that are under way finish."""
    await asyncio.to_thread(service.delete, caller, batch_id)
    return anthropic_schemas.DeletedMessageBatch(id=batch_id)
