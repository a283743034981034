"""The scaler against the fake of RunPod: from no runner to as many as are wanted and back, and what stops it."""

import json
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fake_runpod import KEY, FakeRunpod, Server
from structlog.testing import capture_logs

from batchfile.errors import SettingsError
from tests.helpers.fleet import (
    COOLDOWN_S,
    LOOK_S,
    SHARDS_PER_RUNNER,
    WAIT_S,
    WAIT_S_MAX,
    Jobs,
    Pods,
    Runpod,
    RunpodError,
    Scaler,
    main,
    scale_reader,
)
from tests.helpers.fleet import scaler_parse as parse

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


def test_pods_on_all_pages_count(server: Server, runpod: FakeRunpod) -> None:
    runpod.page_num = 2
    pool = Pool(server, is_pods=True, num_max=5)
    for _ in range(2):
        pool.look(pending_shards=1000)
    assert len(runpod.things["pods"]) == 5


def test_pods_instead_of_always_on_workers_are_runners_of_the_pool(
    server: Server, runpod: FakeRunpod, endpoint: dict[str, Any]
) -> None:
    for name in ("batchfile-mistral-pod1", "batchfile-mistral-large-pod1"):
        runpod.answer("POST", "/v2/pods", {**POD, "name": name}, f"Bearer {KEY}")
    pool = Pool(server)
    jobs = runpod.jobs[endpoint["id"]]
    pool.look(pending_shards=1)
    assert jobs == []
    pool.look(pending_shards=9)
    assert len(jobs) == 2
    pool.look(pending_shards=1000)
    assert len(jobs) == 10


def test_pods_that_have_ended_are_replaced_while_there_is_work(server: Server, runpod: FakeRunpod) -> None:
    pool = Pool(server, is_pods=True, num_max=1)
    pool.look(pending_shards=1)
    (ended,) = runpod.things["pods"].values()
    ended["status"] = "EXITED"
    pool.look()
    pool.look(now=WAIT_S)
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
    with pytest.raises(RunpodError, match="endpoint batchfile-mistral not found"):
        Pool(server).look(pending_shards=1)


def test_what_can_not_be_used_ends_it_with_2(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.delenv("RUNPOD_API_KEY", raising=False)
    assert main(["mistral", "--api", "http://127.0.0.1:1"]) == 2
    monkeypatch.setenv("RUNPOD_API_KEY", KEY)
    assert main(["mistral", "--api", "http://127.0.0.1:1", "--pods", str(tmp_path / "none.json")]) == 2
    api = ["--api", "http://127.0.0.1:1"]
    wrong = [["llama-70b", "--pods", "pod.json"]]
    wrong += [[option, "0"] for option in ("--shards-per-runner", "--idle", "--look", "--most")]
    wrong += [["--api", text] for text in ("batches.example", "ftp://batches.example", "https://", "")]
    for arguments in wrong:
        with pytest.raises(SystemExit) as refused:
            parse(["mistral", *api, *arguments])
        assert refused.value.code == 2
    assert parse(["mistral", *api]).api == "http://127.0.0.1:1"
    with pytest.raises(SettingsError):
        Pods(Runpod(KEY), "mistral", POD, -1)


SCALE = "/api/pools/mistral/scale"
ENDPOINTS = "/v2/serverless"
HEALTH = "/v2/ep1/health"
COUNTS = {"inQueue": 0, "inProgress": 0, "completed": 0, "failed": 0}


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        (SCALE, {"ok": 1}),
        (SCALE, {"pending_shards": "many", "leased_shards": 0, "live_runners": 0}),
        (SCALE, [1]),
        (ENDPOINTS, {}),
        (ENDPOINTS, {"endpoints": None}),
        (ENDPOINTS, {"endpoints": [None]}),
        (ENDPOINTS, {"endpoints": [{"name": "batchfile-mistral"}]}),
        (ENDPOINTS, {"endpoints": [{"name": "batchfile-mistral", "id": "ep1", "timeout": None}]}),
        (ENDPOINTS, {"endpoints": [{"name": "batchfile-mistral", "id": "ep1", "timeout": 1, "workers": {"min": 0}}]}),
        (HEALTH, {}),
        (HEALTH, {"jobs": None, "workers": {}}),
        (HEALTH, {"jobs": {**COUNTS, "failed": None}, "workers": {}}),
        (HEALTH, {"jobs": COUNTS, "workers": {"idle": "none"}}),
    ],
)
def test_an_answer_that_can_not_be_used_is_told_and_ends_nothing(
    server: Server, runpod: FakeRunpod, endpoint: dict[str, Any], path: str, answer: object
) -> None:
    runpod.odd = {SCALE: {"pending_shards": 1, "leased_shards": 0, "live_runners": 0}, path: answer}
    fleet = Jobs(Runpod(KEY, server.url, server.url), "mistral", 60.0)
    with pytest.raises(RunpodError, match="unexpected response"):
        Scaler("mistral", fleet, scale_reader(server.url, "mistral", KEY), 4).look(0.0)
    assert runpod.jobs[endpoint["id"]] == []


def test_jobs_that_fail_at_once_are_told_and_tried_one_at_a_time_ever_more_seldom(
    server: Server, runpod: FakeRunpod, endpoint: dict[str, Any]
) -> None:
    pool = Pool(server)
    jobs = runpod.jobs[endpoint["id"]]
    starts: list[float] = []
    with capture_logs() as told:
        for number in range(400):
            num_before = len(jobs)
            pool.look(now=number * LOOK_S, pending_shards=100)
            starts += [number * LOOK_S] * (len(jobs) - num_before)
            for job in jobs:
                job["status"] = "FAILED"
    assert starts[:10] == [0.0] * 10
    gaps = [after - before for before, after in pairwise(starts[9:])]
    assert 5 < len(gaps) < 12
    assert gaps == sorted(gaps)
    assert WAIT_S <= gaps[0] < gaps[-1] <= WAIT_S_MAX + 2 * LOOK_S
    failed = [event for event in told if event["event"] == "runners.failed"]
    assert [event["num"] for event in failed] == [10, *[1] * len(gaps)]
    assert "worker's log in RunPod's console under batchfile-mistral" in failed[0]["what_to_do"]


def test_once_a_runner_works_again_the_others_are_started_too(
    server: Server, runpod: FakeRunpod, endpoint: dict[str, Any]
) -> None:
    pool = Pool(server)
    jobs = runpod.jobs[endpoint["id"]]
    pool.look(pending_shards=100)
    for job in jobs:
        job["status"] = "FAILED"
    pool.look(now=LOOK_S)
    pool.look(now=LOOK_S + WAIT_S)
    assert len(jobs) == 11
    jobs[-1]["status"] = "IN_PROGRESS"
    pool.look(now=2 * LOOK_S + WAIT_S)
    assert len(jobs) == 11
    pool.look(now=3 * LOOK_S + WAIT_S, leased_shards=1, live_runners=1)
    assert len(jobs) == 20


def test_a_job_that_fails_while_others_work_is_replaced_at_once(
    server: Server, runpod: FakeRunpod, endpoint: dict[str, Any]
) -> None:
    pool = Pool(server)
    jobs = runpod.jobs[endpoint["id"]]
    pool.look(pending_shards=8)
    jobs[0]["status"], jobs[1]["status"] = "FAILED", "IN_PROGRESS"
    pool.look(now=LOOK_S, pending_shards=4, leased_shards=4, live_runners=1)
    assert len(jobs) == 3


@pytest.mark.parametrize("variable", ["RUNPOD_API_KEY", "BATCHFILE_API_KEY"])
def test_a_key_that_can_not_be_sent_is_refused_and_never_shown(tmp_path: Path, variable: str) -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "RUNPOD_API_KEY": KEY, variable: "bf_secret\nkey"}
    command = [sys.executable, "-m", "runners.runpod.scaler", "mistral", "--api", "http://127.0.0.1:1"]
    done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"{variable} contains characters that no key has" in done.stderr
    assert "bf_secret" not in done.stdout + done.stderr


def test_an_api_that_does_not_answer_is_waited_for_until_a_signal_ends_it(server: Server, tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "RUNPOD_API_KEY": KEY, "RUNPOD_MANAGEMENT_URL": server.url}
    command = [sys.executable, "-m", "runners.runpod.scaler", "mistral", "--api", "http://127.0.0.1:1", "--look", "0.1"]
    with subprocess.Popen(command, env=environ, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        told = [json.loads(process.stderr.readline()) for _ in range(2)]
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
    assert [event["event"] for event in told] == ["scaling.failed", "scaling.failed"]
    assert "no response" in told[0]["error"]
    assert process.returncode == 0
