"""A real API process on loopback, and runners with the echo engine inside the test."""

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

import httpx
import pytest

from batchfile import Runner, RunnerOptions
from batchfile.types import Task
from tests.helpers.engine import engine_factory
from tests.helpers.settings import load_settings
from tests.helpers.store import open_service_ledger
from tests.warm import Warm

ROOT = Path(__file__).parents[2]
START_S = WAIT_S = 1200.0  # only against a hang: no test depends on a machine's speed
POOLS = ("mistral", "llama-70b")


class Api:
    """`python -m api` over `store`; `http` speaks to it."""

    def __init__(self, folder: Path, store: str, **variables: str) -> None:
        self.store = store
        self.log = folder / f"api-{time.monotonic_ns()}.log"
        arguments = ["--host", "127.0.0.1", "--port", "0", "--store", store]
        environ = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
        with self.log.open("wb") as file:
            self.process = Warm("api", arguments, cwd=folder, env=environ, stdout=file, stderr=file)
        self.port = self._started()["port"]
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, timeout=30.0, trust_env=False, verify=False)  # reads no CAs

    def submit(self, stage: str, requests: list[dict[str, Any]], **headers: str) -> str:
        answer = self.http.post("/v1/messages/batches", json={"stage": stage, "requests": requests}, headers=headers)
        assert answer.status_code == 200, answer.text
        batch_id: str = answer.json()["id"]
        return batch_id

    def work(self, batch_id: str, *pools: str, embedding: str | None = None) -> None:
        """Run the batch to its end with echo engines, one for each pool; `embedding`: the pool that makes vectors."""
        ledger = open_service_ledger(self.store, load_settings())

        def one(pool: str) -> None:
            options = RunnerOptions(runner_id=f"{pool}-test", pool=pool, only=batch_id, is_janitor=False)
            task: Task = "embed" if pool == embedding else "generate"
            Runner(ledger, engine_factory("echo", model=f"echo-{pool}", task=task), options).run()

        wanted = [*pools, embedding] if embedding else pools or POOLS[:1]
        threads = [threading.Thread(target=one, args=(pool,)) for pool in wanted]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()

    def events(self, name: str) -> list[dict[str, Any]]:
        found = []
        for row in self.log.read_bytes().splitlines():
            with suppress(ValueError):
                found.append(json.loads(row))
        return [event for event in found if event.get("event") == name]

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.http.close()

    def _started(self) -> dict[str, Any]:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            if started := self.events("api.started"):
                return started[0]
            time.sleep(0.05)
        pytest.fail(f"the API did not start: {self.log.read_text()[-3000:]}")


@pytest.fixture
def start_api(tmp_path: Path) -> Iterator[Callable[..., Api]]:
    """Starts APIs; a test that fails leaves none."""
    started: list[Api] = []

    def start(store: str | None = None, **variables: str) -> Api:
        started.append(Api(tmp_path, store or str(tmp_path / "store"), **variables))
        return started[-1]

    yield start
    for api in started:
        api.stop()


class DyingRoute:
    """Leads to a service that is killed when its first answer is there, which the client never hears; then to the
    next one, from `start`. `heads`: what clients sent.
    """

    def __init__(self, first: Api, start: Callable[[], Api]) -> None:
        self._service = first
        self._start = start
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.heads: list[bytes] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with suppress(OSError):
            self._serve(is_dying=True)
            while True:
                self._serve(is_dying=False)

    def _serve(self, *, is_dying: bool) -> None:
        client, _ = self._listener.accept()
        with client, socket.create_connection(("127.0.0.1", self._service.port)) as service:
            threading.Thread(target=self._pass_on, args=(client, service), daemon=True).start()
            while data := service.recv(65536):
                if is_dying:
                    self._service.process.kill()
                    self._service.process.wait()
                    self._service = self._start()
                    client.shutdown(socket.SHUT_RDWR)  # a close alone waits for the thread that reads
                    return
                client.sendall(data)

    def _pass_on(self, client: socket.socket, service: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                self.heads.append(data)
                service.sendall(data)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def dying_route(start_api: Callable[..., Api]) -> Iterator[Callable[..., DyingRoute]]:
    """From a service to its successor, which is started with `variables`."""
    made: list[DyingRoute] = []

    def one(first: Api, **variables: str) -> DyingRoute:
        made.append(DyingRoute(first, lambda: start_api(first.store, **variables)))
        return made[-1]

    yield one
    for route in made:
        route.close()


@pytest.fixture(scope="module")
def serve_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Api]]:
    """Starts APIs that all tests of a file share."""
    started: list[Api] = []

    def serve(**variables: str) -> Api:
        folder = tmp_path_factory.mktemp("api")
        started.append(Api(folder, str(folder / "store"), **variables))
        return started[-1]

    yield serve
    for one in started:
        one.stop()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """One for all tests of a file: without keys, over a directory."""
    folder = tmp_path_factory.mktemp("api")
    one = Api(folder, str(folder / "store"))
    yield one
    one.stop()


class Memory:
    """How much the process grew at most, in bytes of its own: files that are mapped do not count."""

    def __init__(self, process_id: int) -> None:
        self._status = Path(f"/proc/{process_id}/status")
        self._before = self._most = self.anonymous_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    @property
    def grown_bytes(self) -> int:
        return self._most - self._before

    def anonymous_bytes(self) -> int:
        (kib,) = [row.split()[1] for row in self._status.read_text().splitlines() if row.startswith("RssAnon")]
        return int(kib) * 1024

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self._most = max(self._most, self.anonymous_bytes())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture(scope="session")
def watch() -> Callable[[Api], Memory]:
    return lambda api: Memory(api.process.pid)


class RawAnswer(NamedTuple):
    """What came back until the connection was closed; status 0: nothing."""

    status: int
    head: bytes
    body: bytes


def send_raw(api: Api, data: bytes, *more: bytes) -> RawAnswer:
    """Says exactly this on a connection of its own, and listens until it is closed."""
    found = b""
    with socket.create_connection(("127.0.0.1", api.port), timeout=30) as connection:
        with suppress(ConnectionError):
            for piece in (data, *more):
                connection.sendall(piece)
        with suppress(ConnectionError):
            while piece := connection.recv(65536):
                found += piece
    head, _, body = found.partition(b"\r\n\r\n")
    return RawAnswer(int(head.split()[1]) if head else 0, head, body)


@pytest.fixture(scope="session")
def raw() -> Callable[..., RawAnswer]:
    return send_raw


def request(custom_id: str, text: str = "Write one subject line.", **more: Any) -> dict[str, Any]:
    params = {"system": "You write to leads.", "messages": [{"role": "user", "content": text}], "max_tokens": 32}
    return {"custom_id": custom_id, "params": params, **more}


@pytest.fixture(scope="session")
def make_request() -> Callable[..., dict[str, Any]]:
    return request
