"""Uploads over a socket to the real service: whole, packed, in pieces, cut off, stalled and too large."""

import gzip
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BODY_BYTES_MAX = 3_000_000
HEAD = b"POST /v1/messages/batches HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
BODY = json.dumps({"stage": "email", "requests": [{"custom_id": "a", "params": {"messages": []}}]}).encode()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """The port and the process of `python -m api` with small limits."""
    folder = tmp_path_factory.mktemp("service")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    limits = {"BATCHFILE_API__BODY_BYTES_MAX": str(BODY_BYTES_MAX), "BATCHFILE_API__BODY_WAIT_S": "0.5"}
    command = [sys.executable, "-m", "api", "--port", str(port), "--store", str(folder / "store")]
    with (folder / "log").open("wb") as log:
        env = {**os.environ, **limits, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
    try:
        while process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


def exchange(port: int, data: bytes) -> tuple[int, str]:
    """The status and the body of the answer to these bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as s:
        s.sendall(data)
        answer = http.client.HTTPResponse(s)
        answer.begin()
        return answer.status, answer.read().decode()


def sized(body: bytes, *, length: int | None = None, encoding: str | None = None) -> bytes:
    head = HEAD if encoding is None else HEAD + f"Content-Encoding: {encoding}\r\n".encode()
    return head + b"Content-Length: %d\r\n\r\n" % (len(body) if length is None else length) + body


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return (
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in [*pieces, b""])
    )


@pytest.mark.parametrize(
    "data",
    [sized(BODY), chunked(BODY, 7), sized(gzip.compress(BODY, mtime=0), encoding="gzip")],
    ids=["sized", "chunked", "gzip"],
)
def test_an_upload_is_taken_however_it_is_sent(service: tuple[int, int], data: bytes) -> None:
    status, body = exchange(service[0], data)
    assert status == 200
    assert json.loads(body)["id"].startswith("batch_")


@pytest.mark.parametrize(
    ("data", "status", "message"),
    [
        (sized(b" " * (BODY_BYTES_MAX + 1)), 413, "larger than 3,000,000 bytes"),
        (chunked(b" " * (2 * BODY_BYTES_MAX), 100_000), 413, "larger than 3,000,000 bytes"),
        (
            sized(gzip.compress(b" " * (10 * BODY_BYTES_MAX), mtime=0), encoding="gzip"),
            413,
            "larger than 3,000,000 bytes",
        ),
        (sized(BODY, encoding="br"), 415, "use gzip, zstd or none"),
        (sized(BODY, encoding="gzip"), 400, "is not gzip data"),
        (sized(gzip.compress(BODY, mtime=0)[:-9], encoding="gzip"), 400, "is truncated"),
        (sized(b"{", length=1000), 408, "Send it again"),
        (sized(b'{"stage": "email", "requests": [{}]}'), 400, "requests[0].custom_id: is missing"),
    ],
    ids=["long", "long chunked", "bomb", "encoding", "no gzip", "cut gzip", "stalled", "bad request"],
)
def test_a_refused_upload_is_told_why(service: tuple[int, int], data: bytes, status: int, message: str) -> None:
    answer = exchange(service[0], data)
    assert answer[0] == status
    assert message in json.loads(answer[1])["detail"]


def test_uploads_that_break_off_leave_no_file_behind(service: tuple[int, int]) -> None:
    port, pid = service
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as s:
            s.sendall(sized(BODY * 1000, length=2_900_000))
    deadline = time.monotonic() + 20
    while deleted_files(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert deleted_files(pid) == []
    assert exchange(port, sized(BODY))[0] == 200


def deleted_files(pid: int) -> list[str]:
    """What the process holds open and nobody can name."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(os.readlink(entry))
        except FileNotFoundError:
            continue
    return [name for name in found if name.endswith("(deleted)")]
