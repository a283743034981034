"""The API's first and last seconds: a store that is away when it starts, and callers that listen when it stops."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from batchfile.errors import StoreUnavailable
from tests.contract.conftest import BUCKET, CREDENTIALS, free_port, moto_url, s3_credentials
from tests.contract.fault_proxy import FaultProxy, fault_proxy
from tests.helpers.service import main, store_health
from tests.helpers.store import open_ledger

__all__ = ["moto_url", "s3_credentials"]

ROOT = Path(__file__).parents[2]
WAIT_S = 1200.0  # only against a hang: no test depends on a machine's speed
CANARY = "canary-of-the-bucket"


@pytest.fixture
def bucket(moto_url: str) -> Iterator[FaultProxy]:
    with fault_proxy(moto_url) as proxy:
        yield proxy


@pytest.fixture
def waiting(bucket: FaultProxy, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
    """An API whose bucket answers 503: its process, its address and its log."""
    bucket.fault = lambda method, path, headers: 503
    port, log = free_port(), tmp_path / "log"
    store = f"s3://{BUCKET}/start-{port}?endpoint={bucket.url}"
    command = [sys.executable, "-m", "api", "--host", "127.0.0.1", "--port", str(port), "--store", store]
    environ = {**os.environ, **CREDENTIALS, "AWS_SECRET_ACCESS_KEY": CANARY, "PYTHONPATH": str(ROOT)}
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=file, stderr=file)
    url = f"http://127.0.0.1:{port}"
    until(lambda: b"store.awaited" in log.read_bytes() and is_up(url), log)
    yield process, url, log
    process.kill()
    process.wait()


def is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/version").status_code == 200
    except httpx.TransportError:
        return False


def until(is_so: Any, log: Path) -> None:
    ends_at = time.monotonic() + WAIT_S
    while not is_so():
        if time.monotonic() > ends_at:
            pytest.fail(log.read_text()[-3000:])
        time.sleep(0.05)


def test_an_api_that_starts_before_its_store_waits_and_says_so(
    waiting: tuple[subprocess.Popen[bytes], str, Path], bucket: FaultProxy
) -> None:
    process, url, log = waiting
    health = httpx.get(f"{url}/healthz")
    assert (health.status_code, health.json()["status"], health.json()["storage"]) == (200, "degraded", False)
    for method, path in (("GET", "/ready"), ("GET", "/api/batches"), ("POST", "/v1/messages/batches")):
        answer = httpx.request(method, f"{url}{path}")
        assert (answer.status_code, list(answer.json())) == (503, ["detail"])
        assert int(answer.headers["retry-after"]) > 0
    assert list(httpx.get(f"{url}/v1/files").json()) == ["error"], "in the words of who asks"
    bucket.fault = lambda method, path, headers: "pass"
    until(lambda: is_ready(url), log)
    assert httpx.get(f"{url}/api/batches").json() == {"data": [], "has_more": False, "next": None}
    assert b'"store.found"' in log.read_bytes()
    assert CANARY not in log.read_text()
    process.terminate()
    process.wait(WAIT_S)


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.TransportError:
        return False


def test_an_api_that_waits_for_its_store_ends_when_it_is_told_to(
    waiting: tuple[subprocess.Popen[bytes], str, Path],
) -> None:
    process, _, _ = waiting
    process.terminate()
    assert process.wait(WAIT_S) in {0, -signal.SIGTERM}


def test_a_store_that_no_waiting_mends_ends_the_start(bucket: FaultProxy, tmp_path: Path) -> None:
    store = f"s3://no-such-bucket/x?endpoint={bucket.url}"
    command = [sys.executable, "-m", "api", "--port", "0", "--store", store]
    environ = {**os.environ, **CREDENTIALS, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 1
    assert "bucket does not exist" in done.stderr


@pytest.mark.parametrize("port", ["x", "-1", "65536", "1.5"])
def test_a_port_that_is_none_is_refused_with_what_is_taken(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([f"--port={port}"])
    assert ended.value.code == 2
    assert f"argument --port: '{port}' is not a port; use 1 to 65535, or 0 for any" in capsys.readouterr().err


def test_whatever_ends_the_waiting_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_ledger, "WAIT_S", 0.01)
    raised = iter([StoreUnavailable("away"), RuntimeError("a mistake of ours")])

    def open_store() -> None:
        raise next(raised)

    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(RuntimeError, match="a mistake of ours"):
        store_health.opened(open_store, listener)


def test_silent_followers_do_not_hold_up_the_end_and_see_that_they_were_cut_off(
    start_api: Any, make_request: Any
) -> None:
    """Their answer has no end: whoever takes it for the whole has been lied to."""
    api = start_api()
    batch_id = api.submit("email", [make_request("a")])
    head = f"GET /api/batches/{batch_id}/results?live=true HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    followers = []
    for _ in range(3):
        follower = socket.create_connection(("127.0.0.1", api.port), timeout=WAIT_S)
        follower.sendall(head)
        assert follower.recv(4096).startswith(b"HTTP/1.1 200")
        followers.append(follower)
    began_at = time.monotonic()
    api.process.terminate()
    found = []
    for follower in followers:
        found.append(b"".join(iter(lambda one=follower: one.recv(4096), b"")))
        follower.close()
    api.process.wait(WAIT_S)
    assert time.monotonic() - began_at < 15.0, "the server itself would wait for 20 s"
    assert all(not rest.endswith(b"0\r\n\r\n") for rest in found)
    assert not api.events("request.failed")
