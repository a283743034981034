"""The Node adapter in `ts/`: its own tests, and the same adapter against a real API with real runners."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.service.node_kit import CONSUMER, ROOT, TS, find_node, install, run

POOLS = ("mistral", "llama-70b")
KEY = "a-key-of-acme"


@pytest.fixture(scope="module")
def node() -> str:
    """The `node` to use, with the adapter and its tests built."""
    node = find_node()
    install(TS)
    shutil.rmtree(TS / "build", ignore_errors=True)
    run(["npm", "run", "--silent", "build:test"])
    return node


def files_in(folder: str) -> list[str]:
    return [str(path) for path in sorted((TS / "build" / folder).glob("*.test.js"))]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts `python -m ...`; what a failing test leaves behind is ended."""
    started: list[subprocess.Popen[bytes]] = []

    def start_one(*arguments: str) -> subprocess.Popen[bytes]:
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        with (tmp_path / f"log-{len(started)}").open("wb") as log:
            process = subprocess.Popen([sys.executable, "-m", *arguments], cwd=tmp_path, env=environ, stderr=log)
        started.append(process)
        return process

    yield start_one
    for process in started:
        process.terminate()
    for process in started:
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def start_runner(start: Callable[..., subprocess.Popen[bytes]]) -> Callable[[str, str], None]:
    def start_one(pool: str, store: str) -> None:
        start("runners", "--pool", pool, "--engine", "echo", "--store", store, "--metrics-port", "0")

    return start_one


def test_the_adapter_does_what_its_own_tests_say(node: str) -> None:
    run([node, "--test", *files_in("test")])


def test_the_adapter_works_on_the_oldest_node(node: str) -> None:
    oldest = str(install(CONSUMER) / "node")
    assert run([oldest, "--version"]).startswith("v18.")
    run([oldest, "--test", *files_in("test")])


def test_the_package_is_what_node_and_bundlers_expect(node: str) -> None:
    run(["npm", "run", "--silent", "check:package"])


def test_the_package_needs_no_other_and_its_lock_names_no_address(node: str) -> None:
    package = json.loads((TS / "package.json").read_text())
    assert not package.keys() & {"dependencies", "peerDependencies", "optionalDependencies"}
    locked = json.loads((TS / "package-lock.json").read_text())["packages"]
    assert [name for name, one in locked.items() if "resolved" in one] == []


def test_the_stages_run_through_both_pools(
    node: str, start_api: Callable[..., Any], start_runner: Callable[[str, str], None]
) -> None:
    api = start_api(BATCHFILE_API_KEYS=f"acme:{hashlib.sha256(KEY.encode()).hexdigest()}")
    for pool in POOLS:
        start_runner(pool, api.store)
    run([node, "--test", *files_in("test/live")], LOCAL_BATCH_URL=api.url, LOCAL_BATCH_API_KEY=KEY)


def test_a_wait_survives_a_killed_api(
    node: str,
    start_api: Callable[..., Any],
    start: Callable[..., subprocess.Popen[bytes]],
    start_runner: Callable[[str, str], None],
) -> None:
    api = start_api()
    command = [node, str(TS / "build" / "test" / "live" / "waiter.js")]
    environ = {**os.environ, "LOCAL_BATCH_URL": api.url}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as waiter:
        assert waiter.stdout is not None
        try:
            first = json.loads(waiter.stdout.readline())
            api.process.kill()
            api.process.wait()
            # No runner before the new API has answered: the wait must have gone on from the one to the other.
            start("api", "--host", "127.0.0.1", "--port", str(api.port), "--store", api.store)
            second = json.loads(waiter.stdout.readline())
            start_runner(POOLS[0], api.store)
            *_, ended, answer = (json.loads(line) for line in waiter.stdout)
            assert waiter.wait(30) == 0
        finally:
            waiter.kill()
    assert [status["processing_status"] for status in (first, second, ended)] == ["submitted", "submitted", "ended"]
    assert [result["custom_id"] for result in answer["results"]] == [f"lead_{lead}_subject" for lead in range(20)]


def test_the_golden_exchanges_are_what_the_service_says(api: Any) -> None:
    def golden(name: str) -> Any:
        return json.loads((ROOT / "tests" / "golden" / "stage" / f"{name}.json").read_text())

    def ask(name: str, batch_id: str) -> Any:
        asked, expected = golden(name)["request"], golden(name)["response"]
        path = asked["path"].replace("batch_a1b2c3d4e5f6", batch_id)
        answer = api.http.request(asked["method"], path, headers=asked.get("headers"), json=asked.get("body"))
        assert answer.status_code == expected["status"], name
        if answer.status_code == 200:
            assert shape(answer.json()) == shape(expected["body"]), name
        else:
            assert answer.json() == expected["body"], name
        return answer.json()

    batch_id = ask("create", "")["id"]
    ask("status_processing", batch_id)
    ask("results_not_complete", batch_id)
    api.work(batch_id, POOLS[1])
    ended = ask("status_ended", batch_id)
    assert ended["counts"] == golden("status_ended")["response"]["body"]["counts"]
    results = ask("results", batch_id)["results"]
    assert results[1] == golden("results")["response"]["body"]["results"][1]
    path = f"/v1/messages/batches/{batch_id}/results"
    lines = api.http.get(path, headers={"accept": "application/x-ndjson", "batchfile-dialect": "stage"}).content
    assert [json.loads(line) for line in lines.splitlines()] == results
    assert lines.endswith(b"\n")
    ask("not_found", "")
    ask("unknown_stage", "")
    batch_id = ask("schemas_create", "")["id"]
    api.work(batch_id, POOLS[1])
    assert ask("schemas_results", batch_id) == golden("schemas_results")["response"]["body"]


def shape(value: Any) -> Any:
    """Keys in their order and kinds of values; ids and times by their form."""
    if isinstance(value, dict):
        return [(key, shape(one)) for key, one in value.items()]
    if isinstance(value, list):
        return [shape(one) for one in value]
    if isinstance(value, str):
        for name, form in (("id", r"batch_[0-9a-f]{12}"), ("time", r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")):
            if re.fullmatch(form, value):
                return name
    return type(value).__name__
