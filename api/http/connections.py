"""The connections of clients under limits that uvicorn does not keep, so that slow and endless clients lock nobody out.

What a client sends before a request is known is bounded in time and size; connections are bounded in number, and the
one that has waited longest makes room. Knows no route.

Of uvicorn it needs one class and the few methods of it in `_SEAMS`, which is checked where this is imported; no
attribute of it is read. The rest is asyncio's and httptools' own interface.
"""

import asyncio
import json
import resource
import secrets
from dataclasses import dataclass, field
from typing import Any, cast

import structlog
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

FILES_BESIDE = 1_000  # for the store, bodies on disk and logs

log = structlog.get_logger()

_REASONS = {400: "Bad Request", 431: "Request Header Fields Too Large", 503: "Service Unavailable"}


# What uvicorn calls when a request is answered, and to refuse what its parser does not take; what its parser calls.
_SEAMS = ("on_response_complete", "send_400_response", "on_headers_complete", "on_body", "on_message_complete")
_missing = [name for name in _SEAMS if not callable(getattr(HttpToolsProtocol, name, None))]
if _missing:
    raise ImportError(
        f"uvicorn {uvicorn.__version__} is built in another way (HttpToolsProtocol has no {', '.join(_missing)}); "
        "install one that batchfile was tested with, as pyproject.toml names them"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Connections:
    """All of a server. `wait_s` bounds the wait for a whole head, however steadily it drips; `idle_bytes_max` the bytes
    that are neither body nor the end of a head.

    `waiting`: those without a request in work, the longest first. `open`: these and the others.
    """

    connections_max: int
    idle_bytes_max: int
    wait_s: float
    waiting: dict["Connection", None] = field(default_factory=dict)
    open: set["Connection"] = field(default_factory=set)


class _Transport:
    """asyncio's own, and it knows whether an answer has begun."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.has_answer_begun = False

    def write(self, data: bytes) -> None:
        self.has_answer_begun = self.has_answer_begun or not data.startswith(b"HTTP/1.1 100 ")
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Connection(HttpToolsProtocol):
    """One of `all_of_them`."""

    def __init__(self, *args: Any, all_of_them: Connections, **more: Any) -> None:
        super().__init__(*args, **more)
        self._all = all_of_them
        self._deadline: asyncio.TimerHandle | None = None
        self._num_idle_bytes = 0
        self._num_unanswered = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = _Transport(transport)
        super().connection_made(cast(asyncio.Transport, self._transport))
        self._all.open.add(self)
        self._wait()
        if len(self._all.open) > self._all.connections_max:
            longest = next(iter(self._all.waiting))
            if longest is self:
                self._refuse(503, "All connections of this server are in use; try again shortly.")
            else:
                longest._work()
                longest._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.open.discard(self)
        self._work()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._num_idle_bytes += len(data)
        super().data_received(data)
        if self._num_idle_bytes > self._all.idle_bytes_max and not self._transport.is_closing():
            self._refuse(431, f"The head of a request may have {self._all.idle_bytes_max:,} bytes.")

    def send_400_response(self, msg: str) -> None:
        """Of uvicorn's own, for what its parser refuses."""
        self._refuse(400, msg)

    def on_headers_complete(self) -> None:
        self._num_idle_bytes = 0
        self._num_unanswered += 1
        self._work()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._num_idle_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._num_idle_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._num_unanswered -= 1
        self._transport.has_answer_begun = False
        super().on_response_complete()
        if not self._num_unanswered or self._transport.is_closing():
            self._wait()

    def _wait(self) -> None:
        self._work()
        self._all.waiting[self] = None
        self._deadline = asyncio.get_running_loop().call_later(self._all.wait_s, self._give_up)

    def _work(self) -> None:
        """There is a request, or no client any more."""
        self._all.waiting.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        """Close it; and after the same time again, whatever the client has not read is lost to it."""
        if self._transport.is_closing():
            self._transport.abort()
            return
        self._transport.close()
        self._deadline = asyncio.get_running_loop().call_later(self._all.wait_s, self._give_up)

    def _refuse(self, status: int, detail: str) -> None:
        """Nothing is known of the request, so the answer is in no API format; it has an id as every answer has."""
        if not self._transport.has_answer_begun:
            name, body = f"req_{secrets.token_hex(12)}", json.dumps({"detail": detail})
            head = [
                f"HTTP/1.1 {status} {_REASONS[status]}",
                "content-type: application/json",
                f"content-length: {len(body)}",
                f"request-id: {name}",
                f"x-request-id: {name}",
                "connection: close",
            ]
            self._transport.write("\r\n".join([*head, "", body]).encode())
            log.info("connection.refused", request_id=name, status=status)
        self._transport.close()


def raise_file_limit(connections_max: int) -> None:
    """Many systems allow 1,024 open files by default and more to whom asks."""
    wanted = connections_max + FILES_BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
