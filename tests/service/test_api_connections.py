"""Hostile connections: slow, cut off, endless, many. The service answers others, in bounded memory, and leaks nothing.

Whatever is refused has a detail and an id, also what is no HTTP at all.
"""

import asyncio
import json
import os
import random
import re
import resource
import runpy
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import httpx
import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tests.helpers.service import Connections, ServerConnection, connections

BATCHES = "/api/batches"
POST = b"POST /v1/messages/batches?stage=email HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\n"
CLOSE = b"Connection: close\r\n"
LINE = b'{"custom_id": "a", "params": {"messages": [{"role": "user", "content": "hi"}]}}\n'
MIB = 1024 * 1024
SETTLED_S = 30.0


def num_files(api: Any) -> int:
    return len(os.listdir(f"/proc/{api.process.pid}/fd"))


def num_threads(api: Any) -> int:
    return len(os.listdir(f"/proc/{api.process.pid}/task"))


def becomes(is_so: Callable[[], bool]) -> bool:
    """Soon, that is; it has no time of its own."""
    ends_at = time.monotonic() + SETTLED_S
    while not is_so():
        if time.monotonic() > ends_at:
            return False
        time.sleep(0.05)
    return True


def connect(api: Any, *, receive_bytes: int | None = None) -> socket.socket:
    connection = socket.socket()
    if receive_bytes:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.settimeout(30)
    connection.connect(("127.0.0.1", api.port))
    return connection


def listen(connection: socket.socket) -> bytes:
    """Until it is closed."""
    found = b""
    with suppress(ConnectionError):
        while piece := connection.recv(65536):
            found += piece
    return found


def id_of(head: bytes) -> str:
    """What every answer bears in two headers, as the official clients look for it in one of them."""
    found = re.findall(rb"(?im)^(request-id|x-request-id): (req_[0-9a-f]{24})\r?$", head)
    (name, one), (other, same) = sorted(found)
    assert (name, other, one) == (b"request-id", b"x-request-id", same), head
    return one.decode()


def batches(api: Any) -> list[Any]:
    found: list[Any] = httpx.get(f"{api.url}{BATCHES}").json()["data"]
    return found


def test_a_body_that_stops_is_given_up(start_api: Any) -> None:
    api = start_api(BATCHFILE_API__BODY_WAIT_S="1")
    for rest in (
        b"Content-Length: 1000\r\n\r\n" + LINE,
        b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",
        b"Content-Length: 9\r\n\r\n",
    ):
        with connect(api) as connection:
            connection.sendall(POST + rest)
            head, _, body = listen(connection).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408")
        assert b"connection: close" in head.lower()
        assert "no data for" in json.loads(body)["detail"]
    assert batches(api) == []


def test_a_body_that_drips_is_read_and_holds_up_nobody(api: Any, make_request: Any) -> None:
    before = len(batches(api))
    with connect(api) as connection:
        connection.sendall(POST + CLOSE + b"Content-Length: %d\r\n\r\n" % len(LINE))
        for byte in LINE[:-1]:
            connection.sendall(bytes([byte]))
            time.sleep(0.005)
        assert len(batches(api)) == before
        connection.sendall(LINE[-1:])
        assert listen(connection).startswith(b"HTTP/1.1 200")


def test_a_body_that_is_cut_off_creates_nothing_and_leaves_nothing(start_api: Any) -> None:
    """Of many at once, some large: no file, no thread and no batch stays."""
    api = start_api()
    batches(api)
    before = num_files(api)
    threads = []
    for _ in range(2):
        with ExitStack() as clients:
            for number in range(30):
                connection = clients.enter_context(connect(api))
                length = b"Transfer-Encoding: chunked" if number % 2 else b"Content-Length: 99999999"
                connection.sendall(POST + length + b"\r\n\r\n")
                connection.sendall(b"%x\r\n" % (MIB * 2) if number % 2 else b"")
                connection.sendall(LINE * 20_000 if number % 3 else LINE)
        assert becomes(lambda: num_files(api) <= before + 1), num_files(api)
        threads.append(num_threads(api))
        assert batches(api) == []
    assert threads[1] <= max(threads[0], 64 + 16)
    assert not api.events("request.failed")
    assert becomes(lambda: len(posts(api)) == 60), len(posts(api))
    assert {event["status"] for event in posts(api)} == {499}, "who hangs up meets no error of ours"


def posts(api: Any) -> list[dict[str, Any]]:
    return [event for event in api.events("request.answered") if event["method"] == "POST"]


@pytest.mark.parametrize(
    "lengths",
    [
        b"Content-Length: -1\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: 1e3\r\n",
        b"Content-Length: abc\r\n",
        b"Content-Length: \xb2\r\n",
        b"Content-Length: 5, 6\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Transfer-Encoding: gzip\r\n",
        b"Content-Length: 999999999999999999\r\n",
        b"Content-Length: 99999999999999999999999999\r\n",
        b"Content-Length: " + b"9" * 5000 + b"\r\n",
    ],
)
def test_a_length_that_is_wrong_is_refused(api: Any, raw: Any, lengths: bytes) -> None:
    before = len(batches(api))
    answer = raw(api, POST + CLOSE + lengths + b"\r\n" + LINE)
    assert answer.status in {400, 413}, answer
    assert list(json.loads(answer.body)) == ["detail"]
    assert id_of(answer.head)
    assert len(batches(api)) == before


@pytest.mark.parametrize(
    "chunks", [b"zz\r\n", b"-5\r\nabcde\r\n", b"F" * 17 + b"\r\n", b"5\r\nabcdefgh\r\n", b"5;\x00=1\r\n"]
)
def test_chunks_that_are_wrong_are_refused(api: Any, raw: Any, chunks: bytes) -> None:
    before = len(batches(api))
    answer = raw(api, POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
    assert (answer.status, list(json.loads(answer.body))) == (400, ["detail"])
    assert id_of(answer.head)
    assert len(batches(api)) == before


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(b"GET /" + b"a" * 1000, id="target"),
        pytest.param(b"GET /version HTTP/1.1\r\nHost: x\r\nX: ", id="value"),
        pytest.param(b"GET /version HTTP/1.1\r\nHost: x\r\nX", id="name"),
        pytest.param(POST + b"Transfer-Encoding: chunked\r\n\r\n1;", id="chunk extension"),
        pytest.param(POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\nX: ", id="trailer"),
        pytest.param(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\nGET /version HTTP/1.1\r\nX: ", id="second request"),
    ],
)
def test_a_head_without_end_is_cut_off(api: Any, watch: Any, start: bytes) -> None:
    """The test would send 200 MB."""
    with watch(api) as memory, connect(api) as connection:
        connection.sendall(start)
        num_sent = 0
        with suppress(ConnectionError):
            while num_sent < 200:
                connection.sendall(b"a" * MIB)
                num_sent += 1
    assert num_sent < 100
    assert memory.grown_bytes < 16 * MIB
    assert httpx.get(f"{api.url}/version").status_code == 200


def test_a_head_over_the_limit_is_told_so(api: Any, raw: Any) -> None:
    answer = raw(api, b"GET /version HTTP/1.1\r\nHost: x\r\n", b"X: " + b"a" * 70_000)
    assert answer.status == 431
    assert id_of(answer.head) in [event["request_id"] for event in api.events("connection.refused")]
    assert "65,536" in json.loads(answer.body)["detail"]
    many = b"".join(b"X-%d: y\r\n" % number for number in range(3000))
    fits = raw(api, b"GET /version HTTP/1.1\r\nHost: x\r\n" + CLOSE + many + b"\r\n")
    assert fits.status == 200


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET\r\n\r\n",
        b"NONSENSE / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\r\n\r\n\r\n\x00\x00",
        b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /version HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n",
        b"GET /version HTTP/1.1\r\nX : a\r\n\r\n",
        random.Random(1).randbytes(5000).replace(b"\n", b""),
    ],
)
def test_garbage_is_refused(api: Any, raw: Any, garbage: bytes) -> None:
    answer = raw(api, garbage + b"\r\n\r\n")
    assert answer.status in {0, 400, 404, 405, 431}, answer
    assert not answer.body or b'"detail"' in answer.body
    assert not answer.status or id_of(answer.head)
    assert httpx.get(f"{api.url}/version").status_code == 200


def test_garbage_after_requests_takes_nothing_from_them(api: Any, raw: Any) -> None:
    one = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = raw(api, one * 200 + one[:-2] + CLOSE + b"\r\n" + b"\x00\x01garbage")
    assert answer.status == 200
    assert (answer.head + answer.body).count(b"HTTP/1.1 200 OK") == 201
    upgrade = b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close, Upgrade\r\nUpgrade: websocket\r\n"
    assert raw(api, upgrade + b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: YQ==\r\n\r\n").status in {200, 400}
    assert api.events("library.warned"), "what the HTTP library says of it is a line like any other"


def test_ten_thousand_connections_lock_nobody_out(start_api: Any, watch: Any) -> None:
    """Half of them say nothing, half never end their head. As many as this machine allows the test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    num = min(10_000, hard - 1_000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, num + 500), hard))
    api = start_api()
    batches(api)
    before = num_files(api)
    try:
        with watch(api) as memory, ExitStack() as clients:
            for number in range(num):
                connection = clients.enter_context(connect(api))
                if number % 2:
                    with suppress(ConnectionError):
                        connection.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\nX-Slow: ")
                if number % 1000 == 999:
                    assert httpx.get(f"{api.url}/version").status_code == 200
            assert batches(api) == []
            assert num_files(api) < 3_000
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert memory.grown_bytes < 128 * MIB
    assert becomes(lambda: num_files(api) <= before + 1)
    assert batches(api) == []


@pytest.fixture(scope="module")
def large(api: Any, make_request: Any) -> str:
    """A batch whose results are 40 MB."""
    batch_id: str = api.submit("email", [make_request(f"{number}-" + "x" * 10_000) for number in range(4_000)])
    api.work(batch_id)
    return batch_id


@pytest.mark.parametrize("path", ["/v1/messages/batches/{}/results", BATCHES + "/{}/results"])
def test_readers_that_stop_cost_little_and_leave_nothing(api: Any, watch: Any, large: str, path: str) -> None:
    batches(api)
    before = num_files(api)
    get = b"GET " + path.format(large).encode() + b" HTTP/1.1\r\nHost: x\r\n\r\n"
    with watch(api) as memory, ExitStack() as clients:
        readers = [clients.enter_context(connect(api, receive_bytes=4096)) for _ in range(16)]
        for reader in readers:
            reader.sendall(get)
            assert reader.recv(1000).startswith(b"HTTP/1.1 200")
        assert batches(api)
        time.sleep(1.0)  # for what they do not read to pile up, if it would
        assert batches(api)
    assert memory.grown_bytes < 128 * MIB
    assert becomes(lambda: num_files(api) <= before + 1), num_files(api)
    assert num_threads(api) < 64 + 16 + 24
    assert not api.events("request.failed")


def test_followers_that_leave_are_forgotten(start_api: Any, make_request: Any) -> None:
    """With room for two: followers of a batch that does not end hold their place no longer than they stay."""
    api = start_api(BATCHFILE_API__IN_FLIGHT_MAX="2")
    batch_id = api.submit("email", [make_request("a")])
    for _ in range(3):
        with ExitStack() as clients:
            for _ in range(2):
                connection = clients.enter_context(connect(api))
                connection.sendall(f"GET {BATCHES}/{batch_id}/results?live=true HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                assert connection.recv(1000).startswith(b"HTTP/1.1 200")
            assert httpx.get(f"{api.url}{BATCHES}").status_code == 429
        assert becomes(lambda: httpx.get(f"{api.url}{BATCHES}").status_code == 200)


def test_a_uvicorn_that_is_built_in_another_way_is_refused_at_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(HttpToolsProtocol, "on_response_complete")
    with pytest.raises(ImportError, match=r"has no on_response_complete.*; install a version"):
        runpy.run_path(connections.__file__)


@contextmanager
def served(wait_s: float) -> Iterator[int]:
    """A small application behind our connections, with the wait for a head cut short; its port."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
            await send({"type": "http.response.body", "body": b"ok"})

    listener = socket.create_server(("127.0.0.1", 0))
    limits = Connections(connections_max=100, idle_bytes_max=64 * 1024, wait_s=wait_s)
    config = uvicorn.Config(
        app,
        http=partial(ServerConnection, all_of_them=limits),  # type: ignore[arg-type]
        lifespan="off",
        ws="none",
        log_config=None,
        timeout_keep_alive=wait_s,  # type: ignore[arg-type]
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(30)


@pytest.mark.parametrize(
    ("start", "drip"),
    [
        pytest.param(b"", b"", id="nothing"),
        pytest.param(b"GET / HTTP/1.1\r\nX: ", b"a", id="head"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"", id="idle"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nX: ", b"a", id="second head"),
        pytest.param(b"POST / HTTP/1.1\r\nContent-Length: 99999\r\n\r\n", b"a", id="body of a refused request"),
    ],
)
def test_a_connection_without_a_request_is_closed_in_time(start: bytes, drip: bytes) -> None:
    """However steadily it drips."""
    with served(wait_s=0.3) as port, socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        with suppress(ConnectionError):
            connection.sendall(start)
            while drip:
                connection.sendall(drip)
                time.sleep(0.02)
        with suppress(ConnectionError):
            while connection.recv(1000):
                pass
