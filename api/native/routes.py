"""The native API under `/api/`, for the command line, dashboards and autoscalers."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, Literal, get_args

from litestar import Response
from litestar.di import NamedDependency
from litestar.enums import HttpMethod
from litestar.params import FromPath, QueryParameter

from batchfile.ledger.batch_status import BatchStatus, BatchStatusPage, Pool, ShownState
from batchfile.ledger.records import BatchRecord, EndReason, FileRef
from batchfile.ledger.shard_runs import ShardList, shard_list
from batchfile.ledger.status import BatchSnapshot
from batchfile.lines.formats.anthropic import anthropic_lines
from batchfile.lines.formats.openai_results import openai_file
from batchfile.lines.formats.stage import stage_lines
from batchfile.plan.submit import check_key, rerun_before
from batchfile.plan.submit import rerun as rerun_batch

from ..create import create_from, create_options
from ..http.create_query import IsStrict, Metadata, PoolName, Priority, Reuse, metadata_of
from ..http.errors import AnyRequest, Refusal
from ..http.etag import ETAGGED
from ..http.openapi import FILE, JSON_LINES
from ..http.request_bodies import JSON_OR_LINES
from ..http.responses import follow, serve_file, stream
from ..http.routes import CREATE, CallerDep, Routes
from ..ops import schemas as ops_schemas
from ..ops.background import BackgroundTasks
from ..ops.pools import PoolStatus
from ..service import PAGE_MAX, Service, ServiceDep
from . import schemas, serializers

LISTED_STATES = (*get_args(ShownState), *get_args(EndReason))
ResultFormat = Literal["native", "stage", "anthropic", "openai", "openai_errors"]

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


@batches.get("", 400, summary="List batches, newest first", **ETAGGED)
def list_batches(
    service: ServiceDep,
    caller: CallerDep,
    pool_status: NamedDependency[PoolStatus],
    limit: Annotated[int, QueryParameter(ge=1, le=PAGE_MAX)] = 20,
    after: Annotated[str | None, QueryParameter(description="Return batches older than this one.")] = None,
    before: Annotated[str | None, QueryParameter(description="Return the next batches newer than this one.")] = None,
    states: Annotated[
        list[str] | None,  # checked here, because Litestar's own message would have the name of this argument
        QueryParameter(
            name="state", description=f"Only batches in this state, or that ended so: {', '.join(LISTED_STATES)}."
        ),
    ] = None,
    stage: Annotated[str | None, QueryParameter(description="Only batches of this stage.")] = None,
    since: Annotated[
        float | None, QueryParameter(ge=0, description="Only batches created then or later, in epoch seconds.")
    ] = None,
    id: Annotated[
        list[str] | None, QueryParameter(description="These batches, without those that do not exist. Repeatable.")
    ] = None,
) -> BatchStatusPage:
    """With a filter, one page looks at up to 1,000 batches: while `has_more` is true, continue with `after` set to
    `next`, even if the page is empty. `id` and `before` cannot be combined with filters.
    """
    filters = (states, stage, since)
    for one in states or ():
        if one not in LISTED_STATES:
            raise Refusal(400, f"state: {one[:80]!r} is unknown; use one of {', '.join(LISTED_STATES)}", param="state")
    following: str | None = None
    if (id or before) and (after or any(one is not None for one in filters) or (id and before)):
        raise Refusal(400, "id and before: send one of them, without after, state, stage or since")
    if id:
        if len(id) > PAGE_MAX:
            raise Refusal(400, f"id: at most {PAGE_MAX:,} batches; send several requests")
        found, has_more = service.several(caller, id), False
    elif any(one is not None for one in filters):
        searched = service.search(caller, _filter(states, stage), limit=limit, after=after, since=since)
        found, following = searched.data, searched.next
        has_more = following is not None
    else:
        page = service.page(caller, limit=limit, after=after, before=before)
        found, has_more = page.data, page.has_more
        following = found[-1].batch.batch_id if has_more and not before else None
    data = [pool_status.with_waiting(serializers.batch_status(item, is_listed=True)) for item in found]
    return BatchStatusPage(data=data, has_more=has_more, next=following)


def _filter(states: list[str] | None, stage: str | None) -> Callable[[BatchSnapshot], bool]:
    def has(found: BatchSnapshot) -> bool:
        status = found.status
        return stage in {None, status.stage} and (not states or not {status.state, status.reason}.isdisjoint(states))

    return has


@batches.get("/{batch_id:str}", 400, summary="Get a batch", **ETAGGED)
def status(
    batch_id: FromPath[str], service: ServiceDep, caller: CallerDep, pool_status: NamedDependency[PoolStatus]
) -> BatchStatus:
    return pool_status.with_waiting(serializers.batch_status(service.look(caller, batch_id)))


@batches.get("/{batch_id:str}/shards", 400, summary="Get the shards of a batch", **ETAGGED)
def shards(batch_id: FromPath[str], service: ServiceDep, caller: CallerDep) -> ShardList:
    """The shards of an open batch that runners have claimed, and how many requests finished when. Empty once the batch
    has ended.
    """
    batch = service.read(caller, batch_id).batch
    rows = service.reader.shards(batch_id) if batch.state != "ended" else []
    ledger = service.ledger
    return shard_list(rows, created_at=batch.created_at, now=ledger.clock.now(), ttl_s=ledger.limits.lease_ttl_s)


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
    format: Annotated[
        ResultFormat,
        QueryParameter(description="The lines of another API; `openai` and `openai_errors` are its two files."),
    ] = "native",
) -> Response[Any]:
    """The stored results file: one line for each request, in input order. Supports `Range` in the native format."""
    if format != "native":
        batch = service.record(caller, batch_id)
        if live:
            raise Refusal(400, "live: works only in the native format; leave format out")
        batch = service.ended(caller, batch_id)
        if batch.results is None:
            raise Refusal(404, "This batch has no such file")
        return stream(request, _as_format(service.file_chunks(batch.results), batch, format), JSON_LINES)
    if live and service.read(caller, batch_id).batch.state != "ended":
        if request.method == HttpMethod.HEAD:
            return Response(b"", media_type=JSON_LINES)
        return follow(request, service.ledger, batch_id)
    return _file(request, service, service.ended(caller, batch_id).results)


def _as_format(chunks: Iterable[bytes], batch: BatchRecord, format: ResultFormat) -> Iterator[bytes]:
    if format == "stage":
        return stage_lines(chunks)
    if format == "anthropic":
        return anthropic_lines(chunks, batch.batch_id)
    return openai_file(chunks, batch_id=batch.batch_id, created=int(batch.created_at), is_output=format == "openai")


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


@pools.get("/pools", 400, summary="List pools", **ETAGGED)
def list_pools(pool_status: NamedDependency[PoolStatus]) -> list[Pool]:
    return pool_status.pools()


@pools.get("/pools/{pool:str}", 400, summary="Get a pool", **ETAGGED)
def one_pool(pool: FromPath[str], pool_status: NamedDependency[PoolStatus]) -> Pool:
    return pool_status.pool(pool)


@pools.get("/pools/{pool:str}/scale", 400, summary="Get the figures for an autoscaler")
def scale(pool: FromPath[str], pool_status: NamedDependency[PoolStatus]) -> ops_schemas.Scale:
    return pool_status.scale(pool)


@pools.get("/runners", 400, summary="List live runners", **ETAGGED)
def list_runners(
    pool_status: NamedDependency[PoolStatus], pool: Annotated[str | None, QueryParameter()] = None
) -> list[ops_schemas.Runner]:
    return pool_status.runners(pool)


def _file(request: AnyRequest, service: Service, file: FileRef | None) -> Response[Any]:
    if file is None:
        raise Refusal(404, "This batch has no such file")
    return serve_file(request, service.ledger, file)
