"""Until the store answers for the first time: says so in the log and to whoever asks, and tries again. Knows no route
but the probes.
"""

import json
import socket
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import structlog
import uvicorn
from litestar.types import Receive, Scope, Send

from batchfile import __version__
from batchfile.errors import StoreUnavailable
from batchfile.lines.formats.stage import timestamp

from ..http.negotiation import negotiate, problem
from .store_health import SILENT

log = structlog.get_logger()

T = TypeVar("T")

WAIT_S = 1.0  # between the first two tries; doubles
WAIT_S_MAX = 15.0
RETRY_AFTER_S = 5
DETAIL = "The store does not answer yet; try again."


def opened(open_store: Callable[[], T], listener: socket.socket) -> T:
    """What `open_store` gives, as soon as it does. Meanwhile `listener` is served, if the store is away.

    A signal that ends the process ends it here too. Raises: what waiting does not mend.
    """
    try:
        return open_store()
    except StoreUnavailable as error:
        log.warning("store.awaited", error=str(error), again_in_s=WAIT_S)
    found: list[T | Exception] = []
    config = uvicorn.Config(_answer, lifespan="off", log_config=None, access_log=False, server_header=False, ws="none")
    server = uvicorn.Server(config)

    def keep_trying() -> None:
        wait_s = WAIT_S
        while not found:
            time.sleep(wait_s)
            try:
                found.append(open_store())
            except StoreUnavailable as error:
                wait_s = min(2 * wait_s, WAIT_S_MAX)
                log.warning("store.awaited", error=str(error), again_in_s=wait_s)
            except Exception as error:  # noqa: BLE001 whoever waits raises it
                found.append(error)
        server.should_exit = True

    threading.Thread(target=keep_trying, name="awaiting", daemon=True).start()
    server.run(sockets=[listener.dup()])  # which closes its own
    (result,) = found
    if isinstance(result, Exception):
        raise result
    log.info("store.found")
    return result


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
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
        body = problem(negotiate(method, path, headers, of_key=None, request_id=""), 503, DETAIL)
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
