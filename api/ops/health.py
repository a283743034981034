"""Health, version, metrics and documentation of the process. Open to anyone: they reveal nothing about batches."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from litestar import Response
from litestar.di import NamedDependency
from prometheus_client import CONTENT_TYPE_LATEST

from batchfile import __version__
from batchfile.errors import StoreError
from batchfile.lines.formats.stage import timestamp

from ..http.errors import AnyRequest, Refusal
from ..http.openapi import PAGE_POLICY, Pages, RenderedPage
from ..http.responses import names_any
from ..http.routes import Routes
from . import schemas
from .metrics import Metrics
from .pools import PoolStatus
from .store_health import SILENT, StoreHealth

# Separate threads, so that busy uploads do not make the service look dead.
_THREADS = ThreadPoolExecutor(4, thread_name_prefix="probe")

T = TypeVar("T")

probes = Routes("", tag="health", common=(405, 500))


@probes.get("/healthz", summary="Check the health of the service")
async def healthz(
    store_health: NamedDependency[StoreHealth], pool_status: NamedDependency[PoolStatus]
) -> schemas.Health | schemas.Degraded:
    """Always 200 while the process runs.

    `degraded` if the store is unavailable or one of its locks is stuck (both with a `reason`), or if requests wait for
    a pool that is down. A pool that is down without waiting requests is not a fault.
    """
    now, reason = timestamp(time.time()), await store_health.look()
    if reason is not None:
        return schemas.Degraded(status="degraded", storage=False, reason=reason, pools={}, timestamp=now)
    pools, is_healthy = await _in_thread(partial(_pools, pool_status))
    return schemas.Health(status="healthy" if is_healthy else "degraded", storage=True, pools=pools, timestamp=now)


@probes.get("/ready", 503, summary="Check readiness")
async def ready(store_health: NamedDependency[StoreHealth]) -> schemas.Ready:
    if await store_health.look() == SILENT:  # with a stuck lock, most of the service works
        raise Refusal(503, "The store is unavailable; retry shortly.", {"Retry-After": "5"})
    return schemas.Ready()


@probes.get("/version", summary="Get the version")
async def version() -> schemas.Version:
    return schemas.Version(version=__version__)


@probes.get("/metrics", include_in_schema=False)
async def metrics(metrics: NamedDependency[Metrics], store_health: NamedDependency[StoreHealth]) -> Response[bytes]:
    """Prometheus text."""
    return Response(
        await _in_thread(partial(metrics.render, has_store=not store_health.lost.is_set())),
        headers={"Content-Type": CONTENT_TYPE_LATEST},
    )


@probes.get("/docs", include_in_schema=False)
async def docs(request: AnyRequest, pages: NamedDependency[Pages]) -> Response[bytes]:
    """The OpenAPI document as a page without external resources."""
    return _page(request, pages.docs, {"Content-Security-Policy": PAGE_POLICY})


@probes.get("/openapi.json", include_in_schema=False)
async def openapi(request: AnyRequest, pages: NamedDependency[Pages]) -> Response[bytes]:
    return _page(request, pages.openapi, {})


def _page(request: AnyRequest, page: RenderedPage, headers: dict[str, str]) -> Response[bytes]:
    headers |= {"ETag": page.etag, "Cache-Control": "no-cache"}
    if names_any(request.headers.get("if-none-match", ""), {page.etag}):
        return Response(b"", status_code=304, headers=headers)
    return Response(page.body, media_type=page.media_type, headers=headers)


async def _in_thread(call: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(_THREADS, call)


def _pools(pool_status: PoolStatus) -> tuple[dict[str, schemas.PoolHealth], bool]:
    """The health of each pool, and whether all is well. False if the store is unavailable."""
    try:
        return pool_status.health(), not pool_status.is_waiting_in_vain()
    except StoreError:
        return {}, False
