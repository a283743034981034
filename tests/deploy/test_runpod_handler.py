"""The serverless worker under RunPod's own local server and loop, with the echo engine over a real store."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_queue import Queue

from batchfile import Ledger
from tests.helpers.fleet import ServerlessJob, read_job
from tests.helpers.ledger import ShardRecord, batches, keys, load

ROOT = Path(__file__).parents[2]
WAIT_S = 1200.0  # only against a hang: no test depends on a machine's speed
JOB_S_MAX = 200.0
FOR_EVER = {"BATCHFILE_ECHO_LATENCY_S": "3600"}
Start = Callable[..., "Worker"]


class Worker:
    """`python -m runners.runpod.handler` for the pool mistral: with --rp_serve_api, or as the platform starts it."""

    def __init__(self, folder: Path, store: Path, *, is_on_platform: bool = False, **variables: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.log = folder / "worker.log"
        options = [] if is_on_platform else ["--rp_serve_api", "--rp_api_host", "127.0.0.1", "--rp_api_port", str(port)]
        environ = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "POOL": "mistral",
            "RUNNER_ARGUMENTS": f"--engine echo --metrics-port 0 --store {store}",
            "BATCHFILE_LIMITS__GRACE_S": "0.1",
            **variables,
        }
        with self.log.open("wb") as file:
            command = [sys.executable, "-m", "runners.runpod.handler", *options]
            self.process = subprocess.Popen(command, cwd=folder, env=environ, stdout=file, stderr=file)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=JOB_S_MAX, trust_env=False)
        if not is_on_platform:
            self.until(self._answers)

    def run(self, **given: Any) -> dict[str, Any]:
        """A job to its end, as the platform answers it."""
        answer = self.http.post("/runsync", json={"input": {"idle_s": 1, **given}})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def until(self, is_so: Callable[[], object]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not is_so():
            if time.monotonic() > deadline or self.process.poll() is not None:
                pytest.fail(f"it never came: {self.log.read_text()[-3000:]}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            return self.http.get("/openapi.json").status_code == 200
        except httpx.TransportError:
            return False


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Worker] = []

    def begin(*, is_on_platform: bool = False, **variables: str) -> Worker:
        started.append(Worker(tmp_path, tmp_path / "store", is_on_platform=is_on_platform, **variables))
        return started[-1]

    yield begin
    for worker in started:
        worker.process.kill()
        worker.process.wait()
        worker.http.close()


def shard(ledger: Ledger) -> ShardRecord | None:
    found = load(ledger, keys.shard_key("b", "mistral", 0), ShardRecord)
    return None if found is None else found.record


def test_a_job_drains_the_pool_and_a_bad_line_is_not_the_jobs_error(
    start: Start, ledger: Ledger, create: Callable[..., str]
) -> None:
    create(40)
    worker = start()
    job = worker.run()
    assert job["status"] == "COMPLETED", job
    assert (job["output"]["pool"], job["output"]["ended"]) == ("mistral", "idle")
    assert "error" not in job
    batch = batches.read_batch(ledger, "b")
    assert batch is not None
    assert (batch.state, batch.counts.succeeded, batch.counts.errored) == ("ended", 40, 1)


def test_a_job_ends_before_its_timeout_and_gives_back_what_it_holds(
    start: Start, ledger: Ledger, create: Callable[..., str]
) -> None:
    create(3)
    worker = start(**FOR_EVER)
    for timeout_s in (20, 60, 180):  # a busy machine may claim nothing within the first
        job = worker.run(timeout_s=timeout_s, idle_s=None)
        assert job["status"] == "COMPLETED", job
        assert job["output"]["ended"] == "time"
        assert job["output"]["seconds"] < timeout_s
        record = shard(ledger)
        if record is not None:
            break
    assert record is not None
    assert (record.state, record.epoch) == ("open", 1)


def test_a_worker_that_the_platform_stops_gives_back_what_it_holds_and_says_so(
    start: Start, ledger: Ledger, create: Callable[..., str]
) -> None:
    create(3)
    with Queue({"timeout_s": 3600, "idle_s": None}) as queue:
        worker = start(is_on_platform=True, **FOR_EVER, **queue.variables)
        worker.until(lambda: (found := shard(ledger)) and found.state == "leased")
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(WAIT_S) == 0
        (output,) = queue.outputs
    assert output["output"]["ended"] == "stopped"
    record = shard(ledger)
    assert record is not None
    assert record.state == "open"


def test_what_no_work_can_be_done_with_fails_the_job(start: Start) -> None:
    worker = start(BATCHFILE_PORT="none")
    refused = worker.run()
    assert refused["status"] == "FAILED"
    assert "exited with 2" in refused["error"]
    unknown = worker.run(pool="mistral")
    assert unknown["error"] == "input.pool is unknown; use timeout_s, idle_s, prefetch"


def test_a_model_that_is_there_is_not_fetched(tmp_path: Path) -> None:
    environ = {**os.environ, "BATCHFILE_POOLS__MISTRAL__MODEL": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "runners.download_models", "--pool", "mistral"]
    done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stderr)["event"] == "model.found"


def test_an_input_says_how_long() -> None:
    assert read_job({}) == ServerlessJob(timeout_s=600, idle_s=60, is_prefetch=False)
    assert read_job({"idle_s": None, "timeout_s": 90}).idle_s is None
    assert read_job({"timeout_s": 90}).margin_s == 30
    assert read_job({"timeout_s": 7200}).margin_s == 90


@pytest.mark.parametrize("given", [None, [], {"timeout_s": 0}, {"idle_s": True}, {"prefetch": 1}, {"timeout_s": "9"}])
def test_a_wrong_input_is_refused(given: object) -> None:
    with pytest.raises(ValueError, match="input"):
        read_job(json.loads(json.dumps(given)))
