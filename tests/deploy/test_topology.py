"""The topology of deploy/compose.yaml as plain processes, and a pool that has no runner until work comes."""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import yaml
from fake_runpod import KEY, FakeRunpod, Server

from tests.helpers.fleet import FIGURES, SHARDS_PER_RUNNER, Jobs, Runpod, Scaler, handle, scale_reader

ROOT = Path(__file__).parents[2]
WAIT_S = 1200.0  # only against a hang: no test depends on a machine's speed
ENDPOINT = {
    "name": "batchfile-mistral",
    "type": "QUEUE",
    "image": "x",
    "gpu": {"pools": ["ADA_24"]},
    "workers": {"min": 0, "max": 10},
    "scaling": {"type": "REQUEST_COUNT", "requestCount": 1},
    "timeout": 600000,
}

# What runs beside the service: a client that knows where it is, and a scraper that knows its logs.
CLIENT = """
import json, os, pathlib, sys, urllib.request
sys.path.insert(0, "tests")
from deployment import Deployment

service = Deployment(os.environ["LOCAL_BATCH_URL"], None, 60.0)
rows = [
    {"custom_id": f"lead_{n}_{pool}", "params": {"messages": [{"role": "user", "content": "hi"}]},
     "metadata": {"model_hint": pool}}
    for n in range(50) for pool in ("mistral", "llama-70b")
]
batch_id = service.submit("email", rows)
*_, last = service.until_ended(batch_id)
print("COUNTS", last["counts"])
print("IN_ORDER", [row["custom_id"] for row in service.results(batch_id)] == [row["custom_id"] for row in rows])
print(service.http.get("/metrics").text)
for pool in ("mistral", "llama-70b"):
    rows = pathlib.Path(sys.argv[1], pool + ".log").read_text().splitlines()
    events = [json.loads(row) for row in rows if row[:1] == "{"]
    port = next(event["port"] for event in events if event["event"] == "metrics.served")
    print(urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode())
"""


def test_a_batch_goes_through_every_part_and_each_part_is_scraped(tmp_path: Path) -> None:
    config = tmp_path / "batchfile.toml"
    config.write_text("")
    command = [sys.executable, "deploy/service.py", "--engine", "echo", "--port", "0", "--s3"]
    command += ["--config", str(config), "--folder", str(tmp_path), "--", sys.executable, "-c", CLIENT, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "COUNTS {'total': 100, 'succeeded': 100, 'errored': 0, 'pending': 0}" in done.stdout
    assert "IN_ORDER True" in done.stdout
    for pool in ("mistral", "llama-70b"):
        assert re.search(
            rf'^batchfile_runner_requests_total{{.*outcome="succeeded",pool="{pool}"}} 50.0$', done.stdout, re.M
        )
    rules = yaml.safe_load((ROOT / "deploy" / "monitoring" / "alerts.yaml").read_text())["groups"][0]["rules"]
    wanted = {name for rule in rules for name in re.findall(r"batchfile_\w+", rule["expr"])}
    missing = {name for name in wanted if not re.search(rf"^{name}[ {{]", done.stdout, re.M)}
    assert missing <= {"batchfile_oldest_open_created_seconds"}  # nothing is open any more


@pytest.fixture
def api_url(tmp_path: Path) -> Iterator[str]:
    log = tmp_path / "api.log"
    command = [sys.executable, "-m", "api", "--host", "127.0.0.1", "--port", "0", "--store", str(tmp_path / "store")]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=file, stderr=file
        )
    yield f"http://127.0.0.1:{_port(process, log)}"
    process.terminate()
    process.wait()


def _port(process: "subprocess.Popen[bytes]", log: Path) -> int:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline and process.poll() is None:
        for row in log.read_text().splitlines():
            with suppress(ValueError):
                event = json.loads(row)
                if event["event"] == "api.started":
                    return int(event["port"])
        time.sleep(0.05)
    process.kill()
    pytest.fail(f"the API did not start: {log.read_text()[-2000:]}")


def test_a_batch_that_comes_to_a_pool_without_runners_is_done_and_leaves_none(
    tmp_path: Path, api_url: str, server: Server, runpod: FakeRunpod, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API, the scaler and the worker are real; between them the fake hands a job on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POOL", "mistral")
    monkeypatch.setenv("RUNNER_ARGUMENTS", f"--engine echo --metrics-port 0 --store {tmp_path / 'store'}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    runpod.answer("POST", "/v2/serverless", ENDPOINT, f"Bearer {KEY}")
    (jobs,) = runpod.jobs.values()
    fleet = Jobs(Runpod(KEY, server.url, server.url), "mistral", 1.0)
    scaler = Scaler("mistral", fleet, scale_reader(api_url, "mistral", None), SHARDS_PER_RUNNER)
    scaler.look(0.0)
    assert jobs == []
    body = {
        "stage": "email",
        "requests": [{"custom_id": "lead_1_email", "params": {"messages": [{"role": "user", "content": "hi"}]}}],
    }
    batch_id = httpx.post(f"{api_url}/v1/messages/batches", json=body, trust_env=False).json()["id"]
    deadline = time.monotonic() + WAIT_S
    while not jobs and time.monotonic() < deadline:  # the API looks at its store every few seconds
        scaler.look(0.0)
        time.sleep(0.2)
    (job,) = jobs
    output = asyncio.run(handle(job))
    assert output["ended"] == "idle", output
    job["status"] = "COMPLETED"
    status = httpx.get(f"{api_url}/v1/messages/batches/{batch_id}", trust_env=False).json()
    assert (status["processing_status"], status["counts"]["succeeded"]) == ("ended", 1)
    read = scale_reader(api_url, "mistral", None)
    while any(read()[name] for name in FIGURES) and time.monotonic() < deadline:  # what was found lately is kept
        time.sleep(0.2)
    scaler.look(1.0)
    assert len(jobs) == 1
