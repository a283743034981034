"""`/v1/messages/batches`: the stage contract, exactly as the Node app uses it, and Anthropic's Message Batches.

Two API formats share the path; `api.http.negotiation` chooses the one of a response. Any batch can be read in both.
"""

import asyncio
from typing import Annotated, Any

from litestar import Response
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter

from batchfile.lines.formats.anthropic import anthropic_lines
from batchfile.lines.formats.stage import stage_document, stage_lines

from ..create import Contract, create_from, create_options
from ..http.create_query import IsStrict, Metadata, PoolName, Priority, Reuse, metadata_of
from ..http.errors import AnyRequest, Refusal
from ..http.negotiation import BATCHES, Problem
from ..http.openapi import JSON_LINES, OR_LINES, plain
from ..http.request_bodies import JSON_OR_LINES
from ..http.responses import own_url, stream
from ..http.routes import CREATE, CallerDep, FormatDep, Routes
from ..native import schemas as native_schemas
from ..native import serializers as native_serializers
from ..ops.background import BackgroundTasks
from ..service import PAGE_MAX, ServiceDep
from . import schemas as anthropic_schemas

batches = Routes(BATCHES, tag="messages", problem=Problem | anthropic_schemas.ErrorBody)


@batches.post("", *CREATE, summary="Submit a batch", request_max_body_size=None, operation_class=JSON_OR_LINES)
async def create(
    request: AnyRequest,
    service: ServiceDep,
    caller: CallerDep,
    negotiated: FormatDep,
    stage: Annotated[
        str | None, QueryParameter(description="The stage of an `application/x-ndjson` body, which cannot contain one.")
    ] = None,
    priority: Priority = 5,
    metadata: Metadata = None,
    strict: IsStrict = True,
    pool: PoolName = None,
    reuse: Reuse = None,
    *,
    background: NamedDependency[BackgroundTasks],
) -> native_schemas.BatchId | anthropic_schemas.MessageBatch:
    """Create a batch of requests. A request that cannot run becomes an errored result.

    All requests belong to one stage. With `anthropic-version` and no `stage`, each request names its model in
    `params.model`.
    """
    asked = {"stage": stage, "priority": priority, "is_strict": strict, "pool": pool, "reuse": reuse}
    options = create_options(request, service, caller, metadata=metadata_of(metadata), **asked)
    contract: Contract = "anthropic" if negotiated.api_format == "anthropic" else "stage"
    batch = await create_from(request, service, caller, options, contract)
    if batch.is_all_reused:
        background.wake(batch.batch_id)
    if negotiated.api_format == "stage" or (batch.stage is not None and not negotiated.is_asked):
        return native_schemas.BatchId(id=batch.batch_id)
    status = await asyncio.to_thread(service.read, caller, batch.batch_id)
    return anthropic_schemas.message_batch(status, own_url(request, service.settings.api))


@batches.get("", 400, summary="List batches, newest first")
def list_batches(
    request: AnyRequest,
    service: ServiceDep,
    caller: CallerDep,
    limit: Annotated[int, QueryParameter(ge=1, le=PAGE_MAX)] = 20,
    after_id: Annotated[str | None, QueryParameter(description="Return batches older than this one.")] = None,
    before_id: Annotated[str | None, QueryParameter(description="Return the next batches newer than this one.")] = None,
) -> anthropic_schemas.MessageBatchPage:
    if after_id and before_id:
        raise Refusal(400, "after_id and before_id: send only one of them")
    found = service.page(caller, limit=limit, after=after_id or None, before=before_id or None)
    return anthropic_schemas.page_of(found, own_url(request, service.settings.api))


@batches.get("/{batch_id:str}", summary="Get a batch")
def status(
    request: AnyRequest, batch_id: FromPath[str], service: ServiceDep, caller: CallerDep, negotiated: FormatDep
) -> native_schemas.StageStatus | anthropic_schemas.MessageBatch:
    """Get the status and live counts of a batch. Counts never decrease."""
    if negotiated.api_format == "stage":
        return native_serializers.stage_status(service.read(caller, batch_id))
    return anthropic_schemas.message_batch(service.look(caller, batch_id), own_url(request, service.settings.api))


@batches.get(
    "/{batch_id:str}/results",
    400,
    summary="Get the results of a batch",
    operation_class=OR_LINES,
    responses={200: plain(native_schemas.StageResults, "The results, as JSON or JSON Lines.")},
)
def results(
    request: AnyRequest, batch_id: FromPath[str], service: ServiceDep, caller: CallerDep, negotiated: FormatDep
) -> Response[Any]:
    """One result for each request, in input order. JSON Lines if `Accept` contains `application/x-ndjson`, and always
    in Anthropic's API format.
    """
    is_anthropic = negotiated.api_format == "anthropic"
    if is_anthropic and service.record(caller, batch_id).state != "ended":
        raise Refusal(404, "The batch has not ended; its results are available when results_url is not null")
    chunks = service.results(caller, batch_id)
    if is_anthropic:
        return stream(request, anthropic_lines(chunks, batch_id), JSON_LINES)
    if JSON_LINES in request.headers.get("accept", ""):
        return stream(request, stage_lines(chunks), JSON_LINES)
    return stream(request, stage_document(chunks), "application/json")


@batches.post("/{batch_id:str}/cancel", 400, summary="Cancel a batch")
def cancel(
    request: AnyRequest,
    batch_id: FromPath[str],
    service: ServiceDep,
    caller: CallerDep,
    background: NamedDependency[BackgroundTasks],
) -> anthropic_schemas.MessageBatch:
    """No further request starts; finished requests keep their results. An ended batch cannot be canceled."""
    before = service.look(caller, batch_id)
    if before.batch.state == "ended" and before.is_known:
        raise Refusal(400, "The batch has already ended; its results are final")
    found = service.cancel(caller, batch_id)
    background.wake(batch_id)
    return anthropic_schemas.message_batch(found, own_url(request, service.settings.api))


@batches.delete("/{batch_id:str}", 400, summary="Delete a batch")
def remove(batch_id: FromPath[str], service: ServiceDep, caller: CallerDep) -> anthropic_schemas.DeletedMessageBatch:
    """Only an ended batch can be deleted. Downloads in progress finish."""
    service.delete(caller, batch_id)
    return anthropic_schemas.DeletedMessageBatch(id=batch_id)
