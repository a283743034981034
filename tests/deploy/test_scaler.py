"""The scaler against the fake of RunPod: from no runner to as many as are wanted and back, and what stops it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_runpod import KEY, FakeRunpod, Server

from batchfile.errors import SettingsError
from runners.runpod_api import Runpod, RunpodError
from runners.runpod_fleets import Jobs, Pods
from runners.scaler import COOLDOWN_S, Scaler, main, parse
from runners.scaling import SHARDS_PER_RUNNER

ROOT = Path(__file__).parents[2]
POD = {"image": "registry.example/acme/batchfile-mistral:1", "gpu": {"id": "NVIDIA GeForce RTX 4090"}}


class Pool:
    """What the API would say of a pool, and a scaler that reads it."""

    def __init__(self, server: Server, *, is_pods: bool = False, num_max: int = 3) -> None:
        runpod = Runpod(KEY, server.url, server.url)
        self.figures = {"pending_shards": 0, "leased_shards": 0, "live_runners": 0}
        fleet = Pods(runpod, "mistral", POD, num_max) if is_pods else Jobs(runpod, "mistral", 60.0)
        self.scaler = Scaler("mistral", fleet, lambda: self.figures, SHARDS_PER_RUNNER)

    def look(self, now: float = 0.0, **figures: int) -> None:
        self.figures.update(figures)
        self.scaler.look(now)


@pytest.fixture
def endpoint(runpod: FakeRunpod) -> dict[str, Any]:
    body = {
        "name": "batchfile-mistral",
        "type": "QUEUE",
        "image": "x",
        "gpu": {"pools": ["ADA_24"]},
        "workers": {"min": 0, "max": 10},
        "scaling": {"type": "REQUEST_COUNT", "requestCount": 1},
        "timeout": 3600000,
    }
    return runpod.answer("POST", "/v2/serverless", body, f"Bearer {KEY}")[1] or {}


def test_a_batch_that_arrives_at_no_runner_starts_as_many_as_it_keeps_busy(
    server: Server, runpod: FakeRunpod, endpoint: dict[str, Any]
) -> None:
    pool = Pool(server)
    jobs = runpod.jobs[endpoint["id"]]
    pool.look()
    assert jobs == []
    pool.look(pending_shards=1)
    assert len(jobs) == 1
    pool.look(pending_shards=9)
    pool.look(pending_shards=9)
    assert len(jobs) == 3
    pool.look(pending_shards=1000)
    assert len(jobs) == 10


def test_a_job_says_its_timeout_to_the_platform_and_to_the_worker(
    server: Server, runpod: FakeRunpod, endpoint: dict[str, Any]
) -> None:
    Pool(server).look(pending_shards=1)
    (job,) = runpod.jobs[endpoint["id"]]
    assert job["input"] == {"timeout_s": 3600.0, "idle_s": 60.0}
    assert job["policy"] == {"executionTimeout": 3600000, "ttl": 7200000}


def test_jobs_that_ended_leave_none_and_the_next_batch_starts_one(
    server: Server, runpod: FakeRunpod, endpoint: dict[str, Any]
) -> None:
    pool = Pool(server)
    pool.look(pending_shards=8)
    for job in runpod.jobs[endpoint["id"]]:
        job["status"] = "COMPLETED"
    pool.look(pending_shards=0)
    assert len(runpod.jobs[endpoint["id"]]) == 2
    pool.look(pending_shards=1)
    assert len(runpod.jobs[endpoint["id"]]) == 3


def test_a_lease_of_a_dead_runner_starts_one(server: Server, runpod: FakeRunpod, endpoint: dict[str, Any]) -> None:
    Pool(server).look(leased_shards=1, live_runners=0)
    assert len(runpod.jobs[endpoint["id"]]) == 1


def test_workers_that_are_always_on_get_a_job_that_stays(
    server: Server, runpod: FakeRunpod, endpoint: dict[str, Any]
) -> None:
    endpoint["workers"] = {"min": 1, "max": 3}
    pool = Pool(server)
    pool.look()
    pool.look()
    (job,) = runpod.jobs[endpoint["id"]]
    assert job["input"]["idle_s"] is None
    pool.look(pending_shards=100)
    assert [job["input"]["idle_s"] for job in runpod.jobs[endpoint["id"]]] == [None, 60.0, 60.0]


def test_an_endpoint_that_runpod_has_put_to_sleep_gets_no_jobs(
    server: Server, runpod: FakeRunpod, endpoint: dict[str, Any]
) -> None:
    endpoint["workers"] = {"min": 1, "max": 0}
    Pool(server).look(pending_shards=1)
    assert runpod.jobs[endpoint["id"]] == []


def test_pods_come_with_work_and_go_once_there_has_been_none_for_a_while(server: Server, runpod: FakeRunpod) -> None:
    pool = Pool(server, is_pods=True)
    pods = runpod.things["pods"]
    pool.look(pending_shards=100)
    assert len(pods) == 3
    pool.look(now=1000, pending_shards=0, leased_shards=1, live_runners=3)
    pool.look(now=2000, leased_shards=0)
    assert len(pods) == 3
    pool.look(now=2000 + COOLDOWN_S)
    assert pods == {}
    pool.look(now=2000 + COOLDOWN_S, pending_shards=1)
    assert len(pods) == 1


def test_pods_that_have_ended_are_replaced_while_there_is_work(server: Server, runpod: FakeRunpod) -> None:
    pool = Pool(server, is_pods=True, num_max=1)
    pool.look(pending_shards=1)
    (ended,) = runpod.things["pods"].values()
    ended["status"] = "EXITED"
    pool.look()
    assert [pod["status"] for pod in runpod.things["pods"].values()] == ["RUNNING"]
    assert ended["id"] not in runpod.things["pods"]


def test_other_pods_are_left_alone(server: Server, runpod: FakeRunpod) -> None:
    for name in ("batchfile-mistral-large-0123abcd", "batchfile-mistral-by-hand", "mine"):
        runpod.answer("POST", "/v2/pods", {**POD, "name": name}, f"Bearer {KEY}")
    pool = Pool(server, is_pods=True)
    pool.look(now=0)
    pool.look(now=COOLDOWN_S)
    assert len(runpod.things["pods"]) == 3


def test_a_pool_without_an_endpoint_is_named(server: Server) -> None:
    with pytest.raises(RunpodError, match="no endpoint batchfile-mistral"):
        Pool(server).look(pending_shards=1)


def test_what_can_not_be_used_ends_it_with_2(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.delenv("RUNPOD_API_KEY", raising=False)
    assert main(["mistral", "--api", "http://127.0.0.1:1"]) == 2
    monkeypatch.setenv("RUNPOD_API_KEY", KEY)
    assert main(["mistral", "--api", "http://127.0.0.1:1", "--pods", str(tmp_path / "none.json")]) == 2
    with pytest.raises(SystemExit):
        parse(["mistral", "llama-70b", "--api", "x", "--pods", "pod.json"])
    for option in ("--shards-per-runner", "--idle", "--look", "--most"):
        with pytest.raises(SystemExit):
            parse(["mistral", "--api", "x", option, "0"])
    with pytest.raises(SettingsError):
        Pods(Runpod(KEY), "mistral", POD, -1)


def test_an_answer_that_is_not_our_apis_is_told_and_ends_nothing(server: Server) -> None:
    scaler = Scaler("mistral", Jobs(Runpod(KEY, server.url, server.url), "mistral", 60.0), lambda: {"ok": 1}, 4)
    with pytest.raises(RunpodError, match=r"has no pending_shards.*'ok': 1"):
        scaler.look(0.0)


def test_an_api_that_does_not_answer_is_waited_for_until_a_signal_ends_it(server: Server, tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "RUNPOD_API_KEY": KEY, "RUNPOD_MANAGEMENT_URL": server.url}
    command = [sys.executable, "-m", "runners.scaler", "mistral", "--api", "http://127.0.0.1:1", "--look", "0.1"]
    with subprocess.Popen(command, env=environ, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        told = [json.loads(process.stderr.readline()) for _ in range(2)]
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
    assert [event["event"] for event in told] == ["look.failed", "look.failed"]
    assert "no answer" in told[0]["error"]
    assert process.returncode == 0
