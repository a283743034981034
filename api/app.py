"""Builds the ASGI application: the routes, their shared state and the auth middleware around them."""

import asyncio
import secrets
import socket
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from litestar import Litestar, Request, Response
from litestar.di import Provide
from litestar.enums import HttpMethod
from litestar.openapi.spec import OpenAPI

from batchfile.inbox.scan import Inbox
from batchfile.janitor import Janitor
from batchfile.ledger.base import Ledger
from batchfile.ledger.records import BatchRecord
from batchfile.ledger.set_aside import SetAside
from batchfile.long_work import LongWork
from batchfile.settings import Settings
from batchfile.store.metered import MeteredStore

from .anthropic import batches as anthropic_batches
from .anthropic import models
from .dashboard import routes as dashboard
from .dashboard.latest import LatestReader
from .http import errors
from .http.auth import AuthMiddleware, Caller
from .http.negotiation import NegotiatedFormat
from .http.openapi import Pages, StrictSchemas, document_config
from .http.request_bodies import Parameters, check_document, check_query, known_parameters
from .native import routes as native
from .openai import batches as openai_batches
from .openai import files, uploads
from .openai.output_files import OutputFiles
from .ops import health
from .ops.background import BackgroundTasks
from .ops.metrics import Metrics
from .ops.pools import PoolStatus
from .ops.store_health import StoreHealth
from .ops.webhooks import WebhookSender
from .service import Service

LONG_THREADS = 2  # that plan large files, and as many that end large batches
THREADS_SPARE = 32  # beyond what the requests of one key can use: each store request takes a thread

ROUTES = (
    anthropic_batches.batches,
    files.files,
    uploads.uploads,
    openai_batches.batches,
    models.models,
    native.batches,
    native.pools,
    dashboard.batches,
    dashboard.files,
    dashboard.pages,
    health.probes,
)


def create_app(ledger: Ledger, settings: Settings, *, is_janitor: bool = True) -> AuthMiddleware:
    """An ASGI application over a ledger. Any number of processes may serve the same store."""
    store = MeteredStore(ledger.store)
    ledger = replace(ledger, store=store)
    service = Service(ledger, settings, f"api-{socket.gethostname()}-{secrets.token_hex(4)}")
    pool_status = PoolStatus(ledger, settings, service.reader)
    aside = SetAside(ledger)
    metrics = Metrics(pool_status, store, sorted(settings.pools), aside, settings.api.spool_dir)
    store_health = StoreHealth(store)
    output_files = OutputFiles(service)
    latest_reader = LatestReader(ledger)
    webhook_sender = WebhookSender(ledger, settings.webhooks, aside, metrics.count_webhook)
    began_at = ledger.clock.now()

    def on_ended_here(batch: BatchRecord) -> None:
        service.room.on_ended(batch)
        webhook_sender.on_ended(batch)

    long_work = LongWork(ledger, service.name, num_threads=LONG_THREADS, on_ended=on_ended_here, aside=aside)
    background = BackgroundTasks(ledger, service.name, on_ended_here, long_work.take)

    def on_ended(batch: BatchRecord) -> None:
        on_ended_here(batch)
        if (batch.ended_at or 0.0) >= began_at:
            metrics.observe_ended(batch)

    inbox = Inbox(ledger, settings.routing(), settings.schema_of, move_done=settings.inbox.move_done)
    janitor = Janitor(
        ledger,
        runner=service.name,
        reader=service.reader,
        on_ended=on_ended,
        inbox=inbox,
        defer=long_work.take,
        aside=aside,
    )

    @asynccontextmanager
    async def life(_: Litestar) -> AsyncIterator[None]:
        threads = ThreadPoolExecutor(settings.api.in_flight_max + THREADS_SPARE, thread_name_prefix="store")
        asyncio.get_running_loop().set_default_executor(threads)
        beating = asyncio.create_task(store_health.beat())
        stop = threading.Event()
        if is_janitor:
            threading.Thread(target=janitor.run, args=(stop,), name="janitor", daemon=True).start()
            threading.Thread(target=webhook_sender.run, args=(stop,), name="webhooks", daemon=True).start()
        background.start()
        yield
        beating.cancel()
        stop.set()
        background.stop()
        await asyncio.to_thread(long_work.stop, leaves_ends=True)
        service.close()

    known: dict[tuple[str, str], Parameters] = {}

    async def before(request: Request) -> Response[None] | None:  # type: ignore[type-arg]
        """Runs before any route: rejects a query or a document with fields that would be ignored."""
        check_query(known, request)
        if request.route_handler.parsed_data_field is not None:
            check_document(await request.body())
        return _name_methods(request)

    app = Litestar(
        route_handlers=[handler for routes in ROUTES for handler in routes.handlers],
        dependencies={
            "service": _given(lambda: service),
            "pool_status": _given(lambda: pool_status),
            "metrics": _given(lambda: metrics),
            "store_health": _given(lambda: store_health),
            "pages": _given(lambda: pages),
            "output_files": _given(lambda: output_files),
            "latest_reader": _given(lambda: latest_reader),
            "background": _given(lambda: background),
            "caller": _given(_caller),
            "negotiated": _given(_negotiated),
        },
        exception_handlers={Exception: errors.answer},
        before_request=before,
        lifespan=[life],
        plugins=[StrictSchemas()],
        openapi_config=document_config(settings),
        logging_config=None,
    )
    document = _without_head(app.openapi_schema).to_schema()
    known.update(known_parameters(document))
    app.state.document = document  # `api.http.errors` takes from it what a value must be
    pages: Pages = Pages.of(document)
    return AuthMiddleware(app, settings, store_health.lost, metrics.count_answer)


def _given(find: Callable[..., Any]) -> Provide:
    return Provide(find, sync_to_thread=False)


def _caller(request: Request) -> Caller:  # type: ignore[type-arg]  # Litestar reads the annotation as it is
    return request.scope["caller"]  # type: ignore[typeddict-item,no-any-return]


def _negotiated(request: Request) -> NegotiatedFormat:  # type: ignore[type-arg]
    return request.scope["negotiated"]  # type: ignore[typeddict-item,no-any-return]


def _without_head(document: OpenAPI) -> OpenAPI:
    """Removes HEAD: every GET has one, so listing them adds nothing."""
    for item in (document.paths or {}).values():
        item.head = None
    return document


def _name_methods(request: Request) -> Response[None] | None:  # type: ignore[type-arg]
    """Answers OPTIONS: Litestar's own response omits the methods of a path's second handler."""
    if request.method != HttpMethod.OPTIONS:
        return None
    path = request.scope["path_template"]
    allowed = {method for route in request.app.routes if route.path_format == path for method in route.methods}
    return Response(None, status_code=204, headers={"Allow": ", ".join(sorted(allowed))})
