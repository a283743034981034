"""What probes, scrapers and people ask of the process itself. Open to anyone: nothing here tells of a batch."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from litestar import Request, Response, get
from litestar.di import NamedDependency

from batchfile import __version__
from batchfile.errors import StoreError
from batchfile.lines.formats.stage import timestamp

from ..http.errors import Refusal
from ..http.openapi import PAGE_POLICY, Page, Pages, problems
from ..http.responses import names_any
from ..native import schemas
from .metrics import CONTENT_TYPE, Metrics
from .pools import Fleet
from .store_health import SILENT, StoreHealth

# Of their own: threads that are all busy with uploads must not make the service look dead.
_THREADS = ThreadPoolExecutor(4, thread_name_prefix="probe")

T = TypeVar("T")


@get("/healthz", responses=problems((), 405, 500), tags=["health"], summary="Is it well?")
async def healthz(
    store_health: NamedDependency[StoreHealth], fleet: NamedDependency[Fleet]
) -> schemas.Health | schemas.Degraded:
    """Always 200 while the process lives.

    `degraded` where the store does not answer, where a lock of it is stuck (both with a `reason`), and where requests
    wait for a pool that is down. A pool that is down while nothing waits for it is no fault.
    """
    now, reason = timestamp(time.time()), await store_health.look()
    if reason is not None:
        return schemas.Degraded(status="degraded", storage=False, reason=reason, pools={}, timestamp=now)
    pools, is_healthy = await _in_thread(partial(_pools, fleet))
    return schemas.Health(status="healthy" if is_healthy else "degraded", storage=True, pools=pools, timestamp=now)


@get("/ready", responses=problems((), 405, 500, 503), tags=["health"], summary="May it be asked?")
async def ready(store_health: NamedDependency[StoreHealth]) -> schemas.Ready:
    if await store_health.look() == SILENT:  # with a lock stuck, most of the service works
        raise Refusal(503, "The store does not answer now.", {"Retry-After": "5"})
    return schemas.Ready()


@get(
    "/version", responses=problems((), 405, 500), tags=["health"], summary="Which version this is", sync_to_thread=False
)
def version() -> schemas.Version:
    return schemas.Version(version=__version__)


@get("/metrics", include_in_schema=False)
async def metrics(metrics: NamedDependency[Metrics], store_health: NamedDependency[StoreHealth]) -> Response[bytes]:
    """Prometheus text."""
    return Response(
        await _in_thread(partial(metrics.render, has_store=not store_health.lost.is_set())),
        headers={"Content-Type": CONTENT_TYPE},
    )


@get("/docs", include_in_schema=False, sync_to_thread=False)
def docs(request: Request[Any, Any, Any], pages: NamedDependency[Pages]) -> Response[bytes]:
    """The OpenAPI document as a page: nothing is loaded from elsewhere."""
    return _page(request, pages.docs, {"Content-Security-Policy": PAGE_POLICY})


@get("/openapi.json", include_in_schema=False, sync_to_thread=False)
def openapi(request: Request[Any, Any, Any], pages: NamedDependency[Pages]) -> Response[bytes]:
    return _page(request, pages.openapi, {})


def _page(request: Request[Any, Any, Any], page: Page, headers: dict[str, str]) -> Response[bytes]:
    headers |= {"ETag": page.etag, "Cache-Control": "no-cache"}
    if names_any(request.headers.get("if-none-match", ""), {page.etag}):
        return Response(b"", status_code=304, headers=headers)
    return Response(page.body, media_type=page.media_type, headers=headers)


async def _in_thread(call: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(_THREADS, call)


def _pools(fleet: Fleet) -> tuple[dict[str, schemas.PoolHealth], bool]:
    """And is all of it well? Not where the store does not tell."""
    try:
        return fleet.health(), not fleet.is_waiting_in_vain()
    except StoreError:
        return {}, False
