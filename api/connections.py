"""The connections of clients under limits that uvicorn does not keep, so that slow and endless clients lock nobody out.

What a client sends before a request is known is bounded in time and size; connections are bounded in number, and the
one that has waited longest makes room. Takes its limits from uvicorn's own configuration. Knows no route.
"""

import asyncio
import json
import resource
import secrets
from typing import Any

import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

FILES_BESIDE = 1_000  # for the store, bodies on disk and logs

log = structlog.get_logger()

_REASONS = {400: "Bad Request", 431: "Request Header Fields Too Large", 503: "Service Unavailable"}


class Connection(HttpToolsProtocol):
    """Of uvicorn's `Config`: `timeout_keep_alive` bounds the wait for a whole head, however steadily it drips;
    `h11_max_incomplete_event_size` the bytes that are neither body nor the end of a head; `limit_concurrency` the
    connections. `waiting`: those without a request in work, the longest first; shared by all of a server.
    """

    def __init__(self, *args: Any, waiting: dict["Connection", None], **more: Any) -> None:
        super().__init__(*args, **more)
        self._connections_max = self.limit_concurrency
        self.limit_concurrency = None
        self._bytes_max = self.config.h11_max_incomplete_event_size or 64 * 1024
        self._waiting = waiting
        self._deadline: asyncio.TimerHandle | None = None
        self._num_idle_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()
        if self._connections_max is not None and len(self.connections) > self._connections_max:
            longest = next(iter(self._waiting))
            if longest is self:
                self._refuse(503, "All connections of this server are in use; try again shortly.")
            else:
                longest._work()
                longest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._work()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._num_idle_bytes += len(data)
        super().data_received(data)
        if self._num_idle_bytes > self._bytes_max and not self.transport.is_closing():
            self._refuse(431, f"The head of a request may have {self._bytes_max:,} bytes.")

    def send_400_response(self, msg: str) -> None:
        """Of uvicorn's own, for what its parser refuses."""
        self._refuse(400, msg)

    def on_headers_complete(self) -> None:
        self._num_idle_bytes = 0
        self._work()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._num_idle_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._num_idle_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.timeout_keep_alive_task is not None or self.transport.is_closing():  # nothing is pipelined
            self._wait()

    def _wait(self) -> None:
        self._work()
        self._waiting[self] = None
        self._deadline = self.loop.call_later(self.timeout_keep_alive, self._give_up)

    def _work(self) -> None:
        """There is a request, or no client any more."""
        self._waiting.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        """Close it; and after the same time again, whatever the client has not read is lost to it."""
        if self.transport.is_closing():
            self.transport.abort()
            return
        self.transport.close()
        self._deadline = self.loop.call_later(self.timeout_keep_alive, self._give_up)

    def _refuse(self, status: int, detail: str) -> None:
        """Nothing is known of the request, so the answer is in no dialect; it has an id as every answer has."""
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            name, body = f"req_{secrets.token_hex(12)}", json.dumps({"detail": detail})
            head = [
                f"HTTP/1.1 {status} {_REASONS[status]}",
                "content-type: application/json",
                f"content-length: {len(body)}",
                f"request-id: {name}",
                f"x-request-id: {name}",
                "connection: close",
            ]
            self.transport.write("\r\n".join([*head, "", body]).encode())
            log.info("connection.refused", request_id=name, status=status)
        self.transport.close()


def raise_file_limit(connections_max: int) -> None:
    """Many systems allow 1,024 open files by default and more to whom asks."""
    wanted = connections_max + FILES_BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
