"""Native operations under `/api/`: what the command, a dashboard and an autoscaler need."""

import asyncio
from typing import Annotated, Any

from litestar import Request, Response, delete, get, post
from litestar.di import NamedDependency
from litestar.enums import HttpMethod
from litestar.params import FromPath, QueryParameter

from batchfile.errors import InvalidFile
from batchfile.ledger.records import FileRef
from batchfile.types import METADATA_MAX, METADATA_NAME_CHARS_MAX, METADATA_VALUE_CHARS_MAX

from ..create import CreateOptions
from ..http.auth import Caller
from ..http.errors import Refusal
from ..http.openapi import CREATE, FILE, JSON_LINES, READ, problems
from ..http.request_bodies import JSON_OR_LINES, create_from
from ..http.responses import follow, serve_file
from ..ops.background import BackgroundTasks
from ..ops.pools import Fleet
from ..service import PAGE_MAX, Service
from . import schemas, serializers

BATCHES = "/api/batches"
POOLS = "/api/pools"
METADATA_RULE = (
    f"metadata: give at most {METADATA_MAX} times name=value, names up to {METADATA_NAME_CHARS_MAX} letters, "
    f"values up to {METADATA_VALUE_CHARS_MAX}"
)


@post(
    BATCHES,
    status_code=200,
    request_max_body_size=None,  # the spool counts
    operation_class=JSON_OR_LINES,
    responses=problems(CREATE),
    tags=["batches"],
    summary="Submit a batch",
)
async def create(
    request: Request[Any, Any, Any],
    service: NamedDependency[Service],
    caller: NamedDependency[Caller],
    stage: Annotated[
        str | None, QueryParameter(description="Of `application/x-ndjson` bodies, which name none and may have none.")
    ] = None,
    priority: Annotated[int, QueryParameter(ge=0, le=9, description="0 is first.")] = 5,
    metadata: Annotated[list[str] | None, QueryParameter(description="`name=value`, any number of times.")] = None,
    strict: Annotated[
        bool, QueryParameter(description="`false`: lines that can not run become errored results, and refuse nothing.")
    ] = True,
    pool: Annotated[
        str | None, QueryParameter(description="The pool that all requests go to, whatever they say.")
    ] = None,
) -> schemas.Batch:
    create_options = CreateOptions(priority=priority, metadata=_pairs(metadata or []), is_strict=strict, pool=pool)
    batch = await create_from(request, service, caller, stage, create_options=create_options)
    return serializers.batch(await asyncio.to_thread(service.status, caller, batch.batch_id))


@get(BATCHES, responses=problems(READ, 400), tags=["batches"], summary="Batches, newest first")
async def list_batches(
    service: NamedDependency[Service],
    caller: NamedDependency[Caller],
    limit: Annotated[int, QueryParameter(ge=1, le=PAGE_MAX)] = 20,
    after: Annotated[str | None, QueryParameter(description="Only batches that are older than this one.")] = None,
) -> schemas.BatchPage:
    page = await asyncio.to_thread(lambda: service.page(caller, limit=limit, after=after))
    return schemas.BatchPage(data=[serializers.batch(item) for item in page.data], has_more=page.has_more)


@get(BATCHES + "/{batch_id:str}", responses=problems(READ, 400), tags=["batches"], summary="One batch")
async def status(
    batch_id: FromPath[str], service: NamedDependency[Service], caller: NamedDependency[Caller]
) -> schemas.Batch:
    return serializers.batch(await asyncio.to_thread(service.seen, caller, batch_id))


@post(
    BATCHES + "/{batch_id:str}/cancel",
    status_code=200,
    responses=problems(READ, 400),
    tags=["batches"],
    summary="End early",
)
async def cancel(
    batch_id: FromPath[str],
    service: NamedDependency[Service],
    caller: NamedDependency[Caller],
    background: NamedDependency[BackgroundTasks],
) -> schemas.Batch:
    """No further request starts; finished ones keep their results. An ended batch stays what it is."""
    found = await asyncio.to_thread(service.cancel, caller, batch_id)
    background.wake(batch_id)
    return serializers.batch(found)


@delete(BATCHES + "/{batch_id:str}", status_code=200, responses=problems(READ, 400), tags=["batches"], summary="Delete")
async def remove(
    batch_id: FromPath[str],
    service: NamedDependency[Service],
    caller: NamedDependency[Caller],
    now: Annotated[
        bool, QueryParameter(description="Remove its bytes before this answers; downloads under way break off.")
    ] = False,
) -> schemas.Deleted:
    """Only an ended batch can be deleted. Nobody can read it from then on; downloads that are under way finish, so that
    its bytes stay for an hour. A batch that is deleted already can be deleted with `now=true` as well.
    """
    await asyncio.to_thread(service.purge if now else service.delete, caller, batch_id)
    return schemas.Deleted(id=batch_id)


@get(
    BATCHES + "/{batch_id:str}/results",
    responses=problems(READ, 400, 416) | FILE,
    tags=["batches"],
    summary="Native result lines",
)
async def results(
    request: Request[Any, Any, Any],
    batch_id: FromPath[str],
    service: NamedDependency[Service],
    caller: NamedDependency[Caller],
    live: Annotated[
        bool, QueryParameter(description="Do not wait for the end: results as they land, in no order.")
    ] = False,
) -> Response[Any]:
    """The results file as it is stored: one line for each request, in the order of the input. Range is honoured."""
    if live:
        status = await asyncio.to_thread(service.status, caller, batch_id)
        if status.batch.state != "ended":
            if request.method == HttpMethod.HEAD:
                return Response(b"", media_type=JSON_LINES)
            return await follow(request, service.ledger, batch_id)
    batch = await asyncio.to_thread(service.ended, caller, batch_id)
    return await _file(request, service, batch.results)


@get(
    BATCHES + "/{batch_id:str}/errors",
    responses=problems(READ, 400, 416) | FILE,
    tags=["batches"],
    summary="The requests that did not succeed",
)
async def errors(
    request: Request[Any, Any, Any],
    batch_id: FromPath[str],
    service: NamedDependency[Service],
    caller: NamedDependency[Caller],
) -> Response[Any]:
    """The input lines of all requests without an answer, ready to be submitted again."""
    batch = await asyncio.to_thread(service.ended, caller, batch_id)
    return await _file(request, service, batch.errors)


@get(POOLS, responses=problems(READ, 400), tags=["pools"], summary="All pools")
async def list_pools(fleet: NamedDependency[Fleet]) -> list[schemas.Pool]:
    return await asyncio.to_thread(fleet.pools)


@get(POOLS + "/{pool:str}", responses=problems(READ, 400), tags=["pools"], summary="One pool")
async def one_pool(pool: FromPath[str], fleet: NamedDependency[Fleet]) -> schemas.Pool:
    return await asyncio.to_thread(fleet.pool, pool)


@get(POOLS + "/{pool:str}/scale", responses=problems(READ, 400), tags=["pools"], summary="What an autoscaler needs")
async def scale(pool: FromPath[str], fleet: NamedDependency[Fleet]) -> schemas.Scale:
    return await asyncio.to_thread(fleet.scale, pool)


@get("/api/runners", responses=problems(READ, 400), tags=["pools"], summary="The live runners")
async def list_runners(
    fleet: NamedDependency[Fleet], pool: Annotated[str | None, QueryParameter()] = None
) -> list[schemas.Runner]:
    return await asyncio.to_thread(fleet.runners, pool)


def _pairs(given: list[str]) -> dict[str, str]:
    found = {}
    for name, sign, value in (pair.partition("=") for pair in given):
        if sign and 0 < len(name) <= METADATA_NAME_CHARS_MAX and len(value) <= METADATA_VALUE_CHARS_MAX:
            found[name] = value
        else:
            raise InvalidFile(METADATA_RULE)
    if len(given) > METADATA_MAX:
        raise InvalidFile(METADATA_RULE)
    return found


async def _file(request: Request[Any, Any, Any], service: Service, file: FileRef | None) -> Response[Any]:
    if file is None:
        raise Refusal(404, "This batch has no such file")
    return await serve_file(request, service.ledger, file)
