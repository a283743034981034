"""What a service answers, in the words of the client: who refuses, who is busy, and what to do."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from batchfile.client.http_client import Client
from batchfile.errors import ServiceUnavailable, SettingsError


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    class Service(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def asked(url: str, ask: Callable[[Client], Any]) -> None:
    async def all_of_it() -> None:
        async with Client(url, "bf_key", patience_s=0.0) as client:
            await ask(client)

    asyncio.run(all_of_it())


def get(client: Client) -> Any:
    return client.get("/x", dict)


def test_a_refusal_that_is_not_about_the_key_says_what_the_service_says() -> None:
    detail = b'{"detail": "Cross-origin browser requests are rejected."}'
    with answering(403, detail) as url, pytest.raises(SettingsError) as refused:
        asked(url, get)
    assert str(refused.value) == f"{url} does not allow this: Cross-origin browser requests are rejected."
    with answering(403, b"no") as url, pytest.raises(SettingsError, match="does not allow this: it answered 403"):
        asked(url, get)
    with answering(401, b"no") as url, pytest.raises(SettingsError, match="does not accept this API key"):
        asked(url, get)


def test_a_service_that_is_busy_is_not_said_to_be_silent() -> None:
    with answering(429, b'{"detail": "9 batches are open"}') as url, pytest.raises(ServiceUnavailable) as busy:
        asked(url, get)
    assert str(busy.value) == f"{url} is busy (9 batches are open); run the same command again later"


@pytest.mark.parametrize(
    "create",
    [
        lambda client: client.post("/x", dict, idempotency_key="k"),
        lambda client: client.send_lines("/x", dict, lambda: iter([b"{}"]), query=[], idempotency_key="k"),
    ],
)
def test_what_may_have_been_made_is_looked_for_before_it_is_made_again(create: Callable[[Client], Any]) -> None:
    with answering(503, b'{"detail": "no"}') as url, pytest.raises(ServiceUnavailable) as away:
        asked(url, create)
    assert "is unavailable (no); the batch may have been created: check with `batchfile ls`" in str(away.value)
