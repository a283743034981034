"""Limits client connections in ways that uvicorn does not, so that slow clients lock nobody out.

The request head is bounded in time and size. Connections are bounded in number, and the longest idle one is closed to
make room. Independent of the routes.

This overrides the methods of one uvicorn class that are listed in `_SEAMS`, checked on import, and reads no attribute
of it. Everything else uses the public interfaces of asyncio and httptools.
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


# What uvicorn calls after a response and for what its parser rejects; what its parser calls.
_SEAMS = ("on_response_complete", "send_400_response", "on_headers_complete", "on_body", "on_message_complete")
_missing = [name for name in _SEAMS if not callable(getattr(HttpToolsProtocol, name, None))]
if _missing:
    raise ImportError(
        f"uvicorn {uvicorn.__version__} is not supported (HttpToolsProtocol has no {', '.join(_missing)}); "
        "install a version within the range in pyproject.toml"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Connections:
    """All connections of a server. `wait_s`: for a complete request head, even if bytes keep arriving;
    `idle_bytes_max`: bytes of an incomplete request head.

    `waiting`: connections without a request in progress, the longest idle first. `open`: all connections.
    """

    connections_max: int
    idle_bytes_max: int
    wait_s: float
    waiting: dict["ServerConnection", None] = field(default_factory=dict)
    open: set["ServerConnection"] = field(default_factory=set)


class _Transport:
    """An asyncio transport that records whether a response has begun."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.has_answer_begun = False

    def write(self, data: bytes) -> None:
        self.has_answer_begun = self.has_answer_begun or not data.startswith(b"HTTP/1.1 100 ")
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class ServerConnection(HttpToolsProtocol):
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
                self._refuse(503, "All connections of this server are in use; retry shortly.")
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
            self._refuse(431, f"The request line and headers exceed {self._all.idle_bytes_max:,} bytes; shorten them.")

    def send_400_response(self, msg: str) -> None:
        """Overrides uvicorn's response to what its parser rejects."""
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
        """A request has begun, or the client is gone."""
        self._all.waiting.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        """Close the connection; after the same time again, drop what the client has not read."""
        if self._transport.is_closing():
            self._transport.abort()
            return
        self._transport.close()
        self._deadline = asyncio.get_running_loop().call_later(self._all.wait_s, self._give_up)

    def _refuse(self, status: int, detail: str) -> None:
        """The request is unknown, so the response is in no API format; it has an id like every response."""
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
    """Raise the limit of open files: many systems default to 1,024 and allow more."""
    wanted = connections_max + FILES_BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
