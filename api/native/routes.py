"""The native API under `/api/`, for the command line, dashboards and autoscalers."""

import asyncio
from typing import Annotated, Any

from litestar import Response
from litestar.di import NamedDependency
from litestar.enums import HttpMethod
from litestar.params import FromPath, QueryParameter

from batchfile.ledger.batch_status import BatchStatus, BatchStatusPage, Pool
from batchfile.ledger.records import BatchRecord, FileRef
from batchfile.plan.submit import check_key, rerun_before
from batchfile.plan.submit import rerun as rerun_batch

from ..create import create_from, create_options
from ..http.create_query import IsStrict, Metadata, PoolName, Priority, Reuse, metadata_of
from ..http.errors import AnyRequest, Refusal
from ..http.openapi import FILE, JSON_LINES
from ..http.request_bodies import JSON_OR_LINES
from ..http.responses import follow, serve_file
from ..http.routes import CREATE, CallerDep, Routes
from ..ops import schemas as ops_schemas
from ..ops.background import BackgroundTasks
from ..ops.pools import PoolStatus
from ..service import PAGE_MAX, Service, ServiceDep
from . import schemas, serializers

batches = Routes("/api/batches", tag="batches")
pools = Routes("/api", tag="pools")


@batches.post("", *CREATE, summary="Submit a batch", request_max_body_size=None, operation_class=JSON_OR_LINES)
async def create(
    request: AnyRequest,
    service: ServiceDep,
    caller: CallerDep,
    stage: Annotated[
        str | None, QueryParameter(description="The stage of an `application/x-ndjson` body. Optional.")
    ] = None,
    priority: Priority = 5,
    metadata: Metadata = None,
    strict: IsStrict = True,
    pool: PoolName = None,
    reuse: Reuse = None,
    *,
    background: NamedDependency[BackgroundTasks],
) -> BatchStatus:
    asked = {"stage": stage, "priority": priority, "is_strict": strict, "pool": pool, "reuse": reuse}
    options = create_options(request, service, caller, metadata=metadata_of(metadata), **asked)
    batch = await create_from(request, service, caller, options, "native")
    if batch.is_all_reused:
        background.wake(batch.batch_id)
    return serializers.batch_status(await asyncio.to_thread(service.read, caller, batch.batch_id))


@batches.get("", 400, summary="List batches, newest first")
def list_batches(
    service: ServiceDep,
    caller: CallerDep,
    pool_status: NamedDependency[PoolStatus],
    limit: Annotated[int, QueryParameter(ge=1, le=PAGE_MAX)] = 20,
    after: Annotated[str | None, QueryParameter(description="Return batches older than this one.")] = None,
) -> BatchStatusPage:
    page = service.page(caller, limit=limit, after=after)
    data = [pool_status.with_waiting(serializers.batch_status(item)) for item in page.data]
    return BatchStatusPage(data=data, has_more=page.has_more)


@batches.get("/{batch_id:str}", 400, summary="Get a batch")
def status(
    batch_id: FromPath[str], service: ServiceDep, caller: CallerDep, pool_status: NamedDependency[PoolStatus]
) -> BatchStatus:
    return pool_status.with_waiting(serializers.batch_status(service.look(caller, batch_id)))


@batches.post("/{batch_id:str}/cancel", 400, summary="Cancel a batch")
def cancel(
    batch_id: FromPath[str], service: ServiceDep, caller: CallerDep, background: NamedDependency[BackgroundTasks]
) -> BatchStatus:
    """No further request starts; finished requests keep their results. An ended batch stays unchanged."""
    found = service.cancel(caller, batch_id)
    background.wake(batch_id)
    return serializers.batch_status(found)


@batches.delete("/{batch_id:str}", 400, summary="Delete a batch")
def remove(
    batch_id: FromPath[str],
    service: ServiceDep,
    caller: CallerDep,
    now: Annotated[
        bool, QueryParameter(description="Remove its data before responding. Downloads in progress are cut off.")
    ] = False,
) -> schemas.Deleted:
    """Only an ended batch can be deleted. It cannot be read any more, but its data stays for an hour, so that downloads
    in progress can finish. `now=true` also works for a batch that is already deleted.
    """
    (service.purge if now else service.delete)(caller, batch_id)
    return schemas.Deleted(id=batch_id)


@batches.post("/{batch_id:str}/retry", 400, 422, summary="Rerun the requests that did not succeed")
async def retry(request: AnyRequest, batch_id: FromPath[str], service: ServiceDep, caller: CallerDep) -> BatchStatus:
    """Create a batch of the requests that did not succeed, with `retry_of` in its metadata. The old batch stays
    unchanged.

    With an `Idempotency-Key`, a repeated call returns the same batch.
    """
    key = request.headers.get("idempotency-key")
    if key is not None:
        check_key(key)

    def act() -> BatchRecord:
        batch = service.record(caller, batch_id)
        try:
            service.check_room(caller)
        except Refusal:  # it may repeat a rerun that has already created its batch
            made = rerun_before(service.ledger, batch, key)
            if made is None:
                raise
            return made
        return rerun_batch(service.ledger, batch, idempotency_key=key or None)

    async with service.creating:
        made = await asyncio.to_thread(act)
    return serializers.batch_status(await asyncio.to_thread(service.read, caller, made.batch_id))


@batches.get("/{batch_id:str}/results", 400, 416, summary="Get native result lines", responses=FILE)
def results(
    request: AnyRequest,
    batch_id: FromPath[str],
    service: ServiceDep,
    caller: CallerDep,
    live: Annotated[
        bool, QueryParameter(description="Stream results as they are committed, in any order, until the batch ends.")
    ] = False,
) -> Response[Any]:
    """The stored results file: one line for each request, in input order. Supports `Range`."""
    if live and service.read(caller, batch_id).batch.state != "ended":
        if request.method == HttpMethod.HEAD:
            return Response(b"", media_type=JSON_LINES)
        return follow(request, service.ledger, batch_id)
    return _file(request, service, service.ended(caller, batch_id).results)


@batches.get("/{batch_id:str}/errors", 400, 416, summary="Get the requests that did not succeed", responses=FILE)
def errors(request: AnyRequest, batch_id: FromPath[str], service: ServiceDep, caller: CallerDep) -> Response[Any]:
    """The input lines of the requests that did not succeed, ready to be submitted again."""
    return _file(request, service, service.ended(caller, batch_id).errors)


@batches.get("/{batch_id:str}/reasons", 400, 416, summary="Get why requests did not succeed", responses=FILE)
def reasons(request: AnyRequest, batch_id: FromPath[str], service: ServiceDep, caller: CallerDep) -> Response[Any]:
    """A line for each request that did not succeed, in the order of `errors`: `line`, `custom_id`, `status`, `type`,
    `message` and `http_status`. 404 if all succeeded.
    """
    return _file(request, service, service.ended(caller, batch_id).reasons)


@pools.get("/pools", 400, summary="List pools")
def list_pools(pool_status: NamedDependency[PoolStatus]) -> list[Pool]:
    return pool_status.pools()


@pools.get("/pools/{pool:str}", 400, summary="Get a pool")
def one_pool(pool: FromPath[str], pool_status: NamedDependency[PoolStatus]) -> Pool:
    return pool_status.pool(pool)


@pools.get("/pools/{pool:str}/scale", 400, summary="Get the figures for an autoscaler")
def scale(pool: FromPath[str], pool_status: NamedDependency[PoolStatus]) -> ops_schemas.Scale:
    return pool_status.scale(pool)


@pools.get("/runners", 400, summary="List live runners")
def list_runners(
    pool_status: NamedDependency[PoolStatus], pool: Annotated[str | None, QueryParameter()] = None
) -> list[ops_schemas.Runner]:
    return pool_status.runners(pool)


def _file(request: AnyRequest, service: Service, file: FileRef | None) -> Response[Any]:
    if file is None:
        raise Refusal(404, "This batch has no such file")
    return serve_file(request, service.ledger, file)
