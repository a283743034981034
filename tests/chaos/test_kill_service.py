"""Two API replicas and three runners over an S3 server, each killed in turn while a batch of 5,000 requests runs."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import boto3
import httpx
import pytest

ROOT = Path(__file__).parents[2]
NUM_REQUESTS = 5_000
WAIT_S = 150.0
BATCHES = "/v1/messages/batches"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
# A runner has 16 slots and a request takes up to 0.6 s: half a minute and more for three runners.
ECHO = {"BATCHFILE_ECHO_SLOTS": "16", "BATCHFILE_ECHO_SECONDS_PER_TOKEN": "0.02"}
TIMES = {"BATCHFILE_LIMITS__LEASE_TTL_S": "6", "BATCHFILE_LIMITS__CHECKPOINT_S": "1"}


@dataclass
class World:
    """The processes by name, and how to start each again."""

    folder: Path
    store: str
    ports: dict[str, int] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start_api(self, name: str) -> None:
        port = self.ports.setdefault(name, free_port())
        self.start(name, ["api", "--port", str(port), "--store", self.store])

    def start_runner(self, name: str) -> None:
        arguments = ["--pool", "mistral", "--engine", "echo", "--metrics-port", "0", "--store", self.store]
        self.start(name, ["runners", *arguments])

    def start(self, name: str, arguments: list[str]) -> None:
        environ = {**os.environ, **CREDENTIALS, **ECHO, **TIMES, "PYTHONPATH": str(ROOT)}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=self.folder,
                env=environ,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self, name: str) -> None:
        """The process and its children (a runner's engine is one), at once and without a word."""
        pid = self.processes[name].pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for one in (pid, *map(int, children)):
            os.kill(one, signal.SIGKILL)
        self.processes[name].wait()

    def close(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


class Client:
    """Asks whichever replica answers, and keeps every status that was seen."""

    def __init__(self, world: World) -> None:
        self.statuses: Counter[int] = Counter()
        self._world = world
        self._turn = 0
        self._http = httpx.Client(timeout=20.0, trust_env=False)

    def ask(self, method: str, path: str, **more: object) -> httpx.Response:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            self._turn += 1
            port = list(self._world.ports.values())[self._turn % len(self._world.ports)]
            try:
                answer = self._http.request(method, f"http://127.0.0.1:{port}{path}", **more)  # type: ignore[arg-type]
            except httpx.TransportError:
                time.sleep(0.05)
                continue
            self.statuses[answer.status_code] += 1
            if answer.status_code < 500:
                return answer
            time.sleep(0.2)
        pytest.fail(f"no replica answered {method} {path}")

    def close(self) -> None:
        self._http.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    found = World(folder=tmp_path, store=f"s3://kill/service?endpoint={url}&region=us-east-1")
    variables = {"GATEWAY_PORT": str(port), "BIND_HOST": "127.0.0.1", "SERVICES": "s3", "LOG_LEVEL": "WARNING"}
    server = subprocess.Popen(
        [str(Path(sys.executable).with_name("ministack"))],
        cwd=tmp_path,
        env={**os.environ, **variables},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(url)
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        admin = boto3.client("s3", endpoint_url=url, region_name="us-east-1", **keys)
        admin.create_bucket(Bucket="kill")
        admin.close()
        yield found
    finally:
        found.close()
        server.kill()
        server.wait()


def wait_for(url: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"{url} did not come up")


def requests() -> Iterator[bytes]:
    for number in range(NUM_REQUESTS):
        params = {"messages": [{"role": "user", "content": f"Lead {number}"}], "max_tokens": 30}
        yield json.dumps({"custom_id": f"lead_{number}_email", "params": params}).encode() + b"\n"


@pytest.mark.timeout(280)
def test_every_process_may_be_killed_and_the_batch_ends_with_one_result_each(world: World) -> None:
    for name in ("api-a", "api-b"):
        world.start_api(name)
    for name in ("runner-a", "runner-b", "runner-c"):
        world.start_runner(name)
    with closing(Client(world)) as client:
        submit_kill_and_check(world, client)


def submit_kill_and_check(world: World, client: Client) -> None:
    created = client.ask(
        "POST",
        BATCHES,
        params={"stage": "email"},
        content=b"".join(requests()),
        headers={"content-type": "application/x-ndjson", "idempotency-key": "once"},
    )
    assert created.status_code == 200, created.text
    batch_id = created.json()["id"]
    killed_at: list[float] = []
    killer = threading.Thread(target=kill_in_turn, args=(world, killed_at))
    counts = [client.ask("GET", f"{BATCHES}/{batch_id}").json()]
    while counts[-1]["counts"]["pending"] == NUM_REQUESTS:
        time.sleep(0.2)
        counts.append(client.ask("GET", f"{BATCHES}/{batch_id}").json())
    killer.start()
    deadline = time.monotonic() + WAIT_S
    while counts[-1]["processing_status"] != "ended":
        assert time.monotonic() < deadline, counts[-1]
        time.sleep(0.2)
        counts.append(client.ask("GET", f"{BATCHES}/{batch_id}").json())
    killer.join()
    assert client.ask("GET", f"/api/batches/{batch_id}").json()["ended_at"] > killed_at[-1], "it ended too early"

    results = client.ask("GET", f"{BATCHES}/{batch_id}/results").json()["results"]
    assert [result["custom_id"] for result in results] == [f"lead_{number}_email" for number in range(NUM_REQUESTS)]
    assert {result["status"] for result in results} == {"succeeded"}
    assert counts[-1]["counts"] == {"total": NUM_REQUESTS, "succeeded": NUM_REQUESTS, "errored": 0, "pending": 0}
    assert not [status for status in client.statuses if status >= 500]
    order = ["collected", "submitted", "processing", "ended"]
    stages = [order.index(item["processing_status"]) for item in counts]
    assert stages == sorted(stages)


def kill_in_turn(world: World, killed_at: list[float]) -> None:
    """Each once, two seconds apart; each comes back before the next one goes."""
    for name in ("runner-a", "api-a", "runner-b", "api-b", "runner-c"):
        world.kill(name)
        killed_at.append(time.time())
        time.sleep(2)
        if name.startswith("api"):
            world.start_api(name)
        else:
            world.start_runner(name)
