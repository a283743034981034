"""Checks every two seconds whether the store answers, so that no request waits long for a hanging one.

A store that returns errors is noticed at once by each request. A store that hangs would block every thread of this
process for a minute, so after ten seconds without an answer it counts as lost until it answers again.
"""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

import structlog
import uvicorn
from litestar.types import Receive, Scope, Send

from batchfile import __version__
from batchfile.errors import StoreError, StoreUnavailable
from batchfile.lines.formats.stage import timestamp
from batchfile.open_ledger import wait_for_store
from batchfile.store.base import Store

from ..http.negotiation import negotiate, problem

log = structlog.get_logger()

T = TypeVar("T")

PROBE_KEY = "notifications/_ready"  # it need not exist; only the store's answer matters
PROBE_WAIT_S = 5.0
BEAT_S = 2.0
LOST_S = 10.0
RETRY_AFTER_S = 5
SILENT = "The store is unavailable."
SILENT_YET = "The store is not available yet; retry shortly."
STUCK = "A stuck process holds a lock of the store; the server log names it."


class StoreHealth:
    """For one event loop. `lost` is set while the store has not answered for `LOST_S`."""

    def __init__(self, store: Store) -> None:
        self.lost = asyncio.Event()
        self._store = store
        # A separate thread, because all others may be waiting for the store.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store-health")
        self._question: asyncio.Future[str | None] | None = None
        self._answered_at = time.monotonic()
        self._is_stuck = False

    async def look(self) -> str | None:
        """What is wrong with the store; None: nothing. Takes at most `PROBE_WAIT_S`.

        Concurrent calls share one check. With a stuck lock, reads and most writes still work, so the store is not
        lost.
        """
        if self._question is None or self._question.done():
            self._question = asyncio.get_running_loop().run_in_executor(self._thread, self._ask)
        try:
            trouble = await asyncio.wait_for(asyncio.shield(self._question), PROBE_WAIT_S)
        except TimeoutError:
            trouble = SILENT
        self._note(has_answered=trouble != SILENT)
        return trouble

    async def beat(self) -> None:
        """Check forever."""
        while True:
            await self.look()
            await asyncio.sleep(BEAT_S)

    def _ask(self) -> str | None:
        try:
            self._store.head(PROBE_KEY)
        except StoreError:
            return SILENT
        try:
            self._store.check_locks()
        except StoreError as error:
            if not self._is_stuck:
                log.error("store.stuck", error=str(error))
            self._is_stuck = True
            return STUCK
        if self._is_stuck:
            log.info("store.unstuck")
        self._is_stuck = False
        return None

    def _note(self, *, has_answered: bool) -> None:
        now = time.monotonic()
        if has_answered:
            self._answered_at = now
            if self.lost.is_set():
                log.info("store.found")
            self.lost.clear()
        elif now - self._answered_at >= LOST_S and not self.lost.is_set():
            log.error("store.lost", silent_s=round(now - self._answered_at))
            self.lost.set()


def opened(open_store: Callable[[], T], listener: socket.socket) -> T:
    """The result of `open_store`. Until the store is available, `listener` answers probes.

    Signals end the process as usual. Raises: errors that waiting does not fix.
    """
    with suppress(StoreUnavailable):
        return open_store()
    found: list[T | Exception] = []
    config = uvicorn.Config(_answer, lifespan="off", log_config=None, access_log=False, server_header=False, ws="none")
    server = uvicorn.Server(config)

    def wait() -> None:
        try:
            found.append(wait_for_store(open_store))
        except Exception as error:  # noqa: BLE001 raised below by the waiting thread
            found.append(error)
        server.should_exit = True

    threading.Thread(target=wait, name="wait-for-store", daemon=True).start()
    server.run(sockets=[listener.dup()])  # the server closes its copy
    (result,) = found
    if isinstance(result, Exception):
        raise result
    log.info("store.found")
    return result


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    """The application until the store has answered for the first time. It serves only the probes."""
    path = scope["path"].rstrip("/")
    status, body = 503, {}
    if path == "/healthz":
        degraded = {"status": "degraded", "storage": False, "pools": {}, "timestamp": timestamp(time.time())}
        status, body = 200, {**degraded, "reason": SILENT}
    elif path == "/version":
        status, body = 200, {"version": __version__}
    else:
        headers = {name.lower(): value for name, value in scope["headers"]}
        method = scope["method"]  # type: ignore[typeddict-item]
        body = problem(negotiate(method, path, headers, of_key=None, request_id=""), 503, SILENT_YET)
    data = json.dumps(body).encode()
    fields = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(data)).encode()),
        (b"retry-after", str(RETRY_AFTER_S).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    is_head = scope["method"] == "HEAD"  # type: ignore[typeddict-item]
    await send({"type": "http.response.body", "body": b"" if is_head else data, "more_body": False})
