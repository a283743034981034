"""Native operations under `/api/`: what the command, a dashboard and an autoscaler need."""

import asyncio
from typing import Annotated, Any

from litestar import Response
from litestar.di import NamedDependency
from litestar.enums import HttpMethod
from litestar.params import FromPath, QueryParameter

from batchfile.errors import InvalidFile
from batchfile.ledger.batch_status import BatchStatus, BatchStatusPage
from batchfile.ledger.records import BatchRecord, FileRef
from batchfile.plan.submit import check_key, retried_before
from batchfile.plan.submit import retry as retry_batch
from batchfile.types import METADATA_MAX, METADATA_NAME_CHARS_MAX, METADATA_VALUE_CHARS_MAX

from ..http.errors import AnyRequest, Refusal
from ..http.openapi import FILE, JSON_LINES
from ..http.request_bodies import JSON_OR_LINES, create_from, create_options
from ..http.responses import follow, serve_file
from ..http.routes import CREATE, CallerDep, Routes, ServiceDep
from ..ops.background import BackgroundTasks
from ..ops.pools import PoolStatus
from ..service import PAGE_MAX, Service
from . import schemas, serializers

METADATA_RULE = (
    f"metadata: give at most {METADATA_MAX} times name=value, names up to {METADATA_NAME_CHARS_MAX} letters, "
    f"values up to {METADATA_VALUE_CHARS_MAX}"
)

batches = Routes("/api/batches", tag="batches")
pools = Routes("/api", tag="pools")


@batches.post("", *CREATE, summary="Submit a batch", request_max_body_size=None, operation_class=JSON_OR_LINES)
async def create(
    request: AnyRequest,
    service: ServiceDep,
    caller: CallerDep,
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
) -> BatchStatus:
    pairs = _pairs(metadata or [])
    options = create_options(
        request, service, caller, stage=stage, priority=priority, metadata=pairs, is_strict=strict, pool=pool
    )
    batch = await create_from(request, service, caller, options, "native")
    return serializers.batch(await asyncio.to_thread(service.status, caller, batch.batch_id))


@batches.get("", 400, summary="Batches, newest first")
def list_batches(
    service: ServiceDep,
    caller: CallerDep,
    limit: Annotated[int, QueryParameter(ge=1, le=PAGE_MAX)] = 20,
    after: Annotated[str | None, QueryParameter(description="Only batches that are older than this one.")] = None,
) -> BatchStatusPage:
    page = service.page(caller, limit=limit, after=after)
    return BatchStatusPage(data=[serializers.batch(item) for item in page.data], has_more=page.has_more)


@batches.get("/{batch_id:str}", 400, summary="One batch")
def status(batch_id: FromPath[str], service: ServiceDep, caller: CallerDep) -> BatchStatus:
    return serializers.batch(service.seen(caller, batch_id))


@batches.post("/{batch_id:str}/cancel", 400, summary="End early")
def cancel(
    batch_id: FromPath[str], service: ServiceDep, caller: CallerDep, background: NamedDependency[BackgroundTasks]
) -> BatchStatus:
    """No further request starts; finished ones keep their results. An ended batch stays what it is."""
    found = service.cancel(caller, batch_id)
    background.wake(batch_id)
    return serializers.batch(found)


@batches.delete("/{batch_id:str}", 400, summary="Delete")
def remove(
    batch_id: FromPath[str],
    service: ServiceDep,
    caller: CallerDep,
    now: Annotated[
        bool, QueryParameter(description="Remove its bytes before this answers; downloads under way break off.")
    ] = False,
) -> schemas.Deleted:
    """Only an ended batch can be deleted. Nobody can read it from then on; downloads that are under way finish, so that
    its bytes stay for an hour. A batch that is deleted already can be deleted with `now=true` as well.
    """
    (service.purge if now else service.delete)(caller, batch_id)
    return schemas.Deleted(id=batch_id)


@batches.post("/{batch_id:str}/retry", 400, 422, summary="Run again what did not succeed")
async def retry(request: AnyRequest, batch_id: FromPath[str], service: ServiceDep, caller: CallerDep) -> BatchStatus:
    """A new batch of the requests without an answer, with `retry_of` in its metadata; the old one stays as it is.

    With an `Idempotency-Key` a repeated call gives the same batch.
    """
    key = request.headers.get("idempotency-key")
    if key is not None:
        check_key(key)

    def act() -> BatchRecord:
        batch = service.record(caller, batch_id)
        try:
            service.check_room(caller)
        except Refusal:  # but it may be the retry that made a batch already
            made = retried_before(service.ledger, batch, key)
            if made is None:
                raise
            return made
        return retry_batch(service.ledger, batch, idempotency_key=key or None)

    async with service.creating:
        made = await asyncio.to_thread(act)
    return serializers.batch(await asyncio.to_thread(service.status, caller, made.batch_id))


@batches.get("/{batch_id:str}/results", 400, 416, summary="Native result lines", responses=FILE)
def results(
    request: AnyRequest,
    batch_id: FromPath[str],
    service: ServiceDep,
    caller: CallerDep,
    live: Annotated[
        bool, QueryParameter(description="Do not wait for the end: results as they land, in no order.")
    ] = False,
) -> Response[Any]:
    """The results file as it is stored: one line for each request, in the order of the input. Range is honoured."""
    if live and service.status(caller, batch_id).batch.state != "ended":
        if request.method == HttpMethod.HEAD:
            return Response(b"", media_type=JSON_LINES)
        return follow(request, service.ledger, batch_id)
    return _file(request, service, service.ended(caller, batch_id).results)


@batches.get("/{batch_id:str}/errors", 400, 416, summary="The requests that did not succeed", responses=FILE)
def errors(request: AnyRequest, batch_id: FromPath[str], service: ServiceDep, caller: CallerDep) -> Response[Any]:
    """The input lines of all requests without an answer, ready to be submitted again."""
    return _file(request, service, service.ended(caller, batch_id).errors)


@pools.get("/pools", 400, summary="All pools")
def list_pools(pool_status: NamedDependency[PoolStatus]) -> list[schemas.Pool]:
    return pool_status.pools()


@pools.get("/pools/{pool:str}", 400, summary="One pool")
def one_pool(pool: FromPath[str], pool_status: NamedDependency[PoolStatus]) -> schemas.Pool:
    return pool_status.pool(pool)


@pools.get("/pools/{pool:str}/scale", 400, summary="What an autoscaler needs")
def scale(pool: FromPath[str], pool_status: NamedDependency[PoolStatus]) -> schemas.Scale:
    return pool_status.scale(pool)


@pools.get("/runners", 400, summary="The live runners")
def list_runners(
    pool_status: NamedDependency[PoolStatus], pool: Annotated[str | None, QueryParameter()] = None
) -> list[schemas.Runner]:
    return pool_status.runners(pool)


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


def _file(request: AnyRequest, service: Service, file: FileRef | None) -> Response[Any]:
    if file is None:
        raise Refusal(404, "This batch has no such file")
    return serve_file(request, service.ledger, file)
