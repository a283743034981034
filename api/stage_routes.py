"""The stage contract: `/v1/messages/batches`, exactly as the Node app speaks it."""

import asyncio
from typing import Annotated, Any

from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter

from api import shapes, views
from api.answers import CREATE, JSON_LINES, OR_LINES, READ, STAGE_RESULTS, problems
from api.bodies import JSON_OR_LINES, create_from
from api.door import Caller
from api.service import Service
from api.streams import stream
from batchfile.lines.stage import stage_document, stage_lines

PATH = "/v1/messages/batches"


@post(
    PATH,
    status_code=200,
    request_max_body_size=None,  # the spool counts
    operation_class=JSON_OR_LINES,
    responses=problems(CREATE),
    tags=["stage"],
    summary="Submit a batch",
)
async def create(
    request: Request[Any, Any, Any],
    service: NamedDependency[Service],
    caller: NamedDependency[Caller],
    stage: Annotated[
        str | None, QueryParameter(description="Of `application/x-ndjson` bodies, which name none.")
    ] = None,
) -> shapes.BatchId:
    """Create a batch of requests for one stage. Any of its requests that can not run becomes an errored result."""
    batch = await create_from(request, service, caller, stage)
    return shapes.BatchId(id=batch.batch_id)


@get(PATH + "/{batch_id:str}", responses=problems(READ), tags=["stage"], summary="How far a batch is")
async def status(
    batch_id: FromPath[str], service: NamedDependency[Service], caller: NamedDependency[Caller]
) -> shapes.StageStatus:
    """Counts are live and only ever grow."""
    return views.stage_status(await asyncio.to_thread(service.status, caller, batch_id))


@get(
    PATH + "/{batch_id:str}/results",
    operation_class=OR_LINES,
    responses=problems(READ, 400) | STAGE_RESULTS,
    tags=["stage"],
    summary="The results of a batch",
)
async def results(
    request: Request[Any, Any, Any],
    batch_id: FromPath[str],
    service: NamedDependency[Service],
    caller: NamedDependency[Caller],
) -> Response[Any]:
    """One result for each request, in the order of the input; JSON lines where `application/x-ndjson` is accepted."""
    chunks = await asyncio.to_thread(service.results, caller, batch_id)
    if JSON_LINES in request.headers.get("accept", ""):
        return await stream(request, stage_lines(chunks), JSON_LINES)
    return await stream(request, stage_document(chunks), "application/json")
