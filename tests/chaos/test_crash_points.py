"""Real processes that kill themselves at a named write; another process goes on, and nothing is lost or done twice.

Nothing between two writes can be seen from outside: right after one is right before the next. Processes that do not
know each other run side by side, a few at a time. The short form has some of the points: every write of a runner and
an assembler is tried in one process by test_crash_at_every_write.py.
"""

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from batchfile import Ledger
from batchfile.errors import SettingsError
from batchfile.testing import MemoryStore, armed
from batchfile.types import Defaults
from tests.chaos.servers import free_ports
from tests.helpers.faults import VARIABLE, kind_of
from tests.helpers.ledger import batches, keys
from tests.helpers.plan import plan_input
from tests.helpers.settings import load_settings
from tests.helpers.store import DirectoryStore
from tests.warm import Warm

ROOT = Path(__file__).parents[2]
NUM_REQUESTS = 90  # three shards
NUM_AT_ONCE = 3
WAIT_S = 1200.0  # only against a hang: no test depends on a machine's speed
BATCHES = "/v1/messages/batches"

Points = tuple[str, ...]

# A run creates as the API does and works as a runner does: of these, where it is alone.
RUN = ("put-batch:after", "commit-results:after")
RUN_LONG = ("link-input:after", "put-idempotency:after")
RUNNER = ("put-shard:after:4", "put-part:after", "commit-results:after", "put-batch:after")
RUNNER_LONG = (
    "put-runners:after",
    "put-shard:after",
    "put-part:before",
    "put-assembly:after",
    "put-batch:before",
    "delete-queue:after",
    "delete-part:after",
)
API = ("put-idempotency:after", "put-plan:after", "put-batch:after")
API_LONG = ("commit-input:after", "put-queue:after", "put-index:after", "put-batch:before")


def forms(short: Points, long: Points) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("points", [short, pytest.param(long, marks=pytest.mark.long)], ids=["short", "long"])


def test_without_the_variable_a_store_is_itself() -> None:
    store = MemoryStore()
    assert armed(store, {}) is store


@pytest.mark.parametrize("text", ["put", "put-shard", "put-shard:during", "get-shard:after", "put-shard:after:0"])
def test_a_point_that_can_not_be_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="such as put-shard:after"):
        armed(MemoryStore(), {VARIABLE: text})


def test_points_are_named_after_what_is_written() -> None:
    batch = "batches/b/"
    names = ["batch.json", "input-n.jsonl", "shards/p/000001.json", "parts/p/000001/l-0.jsonl", "results-n.jsonl"]
    assert [kind_of(batch + name) for name in names] == ["batch", "input", "shard", "part", "results"]
    assert [kind_of(key) for key in ("queue/p/1-2-b", "runners/p/r.json")] == ["queue", "runners"]


@forms(RUN, RUN_LONG)
def test_a_run_killed_at_any_point_is_finished_by_the_same_command(tmp_path: Path, points: Points) -> None:
    with ThreadPoolExecutor(NUM_AT_ONCE) as threads:
        problems = list(threads.map(lambda point: killed_run(tmp_path / point.replace(":", "-"), point), points))
    assert [problem for problem in problems if problem] == []


@forms(RUNNER, RUNNER_LONG)
def test_a_runner_killed_at_any_point_is_followed_by_another(tmp_path: Path, points: Points) -> None:
    with ThreadPoolExecutor(NUM_AT_ONCE) as threads:
        problems = list(threads.map(lambda point: killed_runner(tmp_path / point.replace(":", "-"), point), points))
    assert [problem for problem in problems if problem] == []


@forms(API, API_LONG)
def test_a_create_cut_off_at_any_point_is_completed_by_its_repetition_at_another_replica(
    tmp_path: Path, points: Points
) -> None:
    store, whole = tmp_path / "store", tmp_path / "whole"
    store.mkdir()
    other, port = start_api(store, whole, "")
    try:
        with ThreadPoolExecutor(NUM_AT_ONCE) as threads:
            problems = list(threads.map(lambda point: killed_create(tmp_path, point, port), points))
        assert [problem for problem in problems if problem] == []
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT_S, trust_env=False) as http:
            listed = http.get("/api/batches", params={"limit": "100"}).json()["data"]
    finally:
        other.kill()
        code_of(other)
    assert len(listed) == len(points), "a key made more than one batch"
    assert code_of(start_runner(store, tmp_path / "log", "")) == 0
    for batch in listed:
        assert len(results(store, batch["id"])) == NUM_REQUESTS


def killed_run(folder: Path, point: str) -> str:
    """What is wrong, or nothing."""
    folder.mkdir()
    (folder / "in.jsonl").write_bytes(request_lines())
    store = folder / ".batchfile"
    command = ["batchfile", "run", "in.jsonl", "-o", "out.jsonl", "--engine", "echo", "--quiet"]
    if code_of(start(folder, folder / "first", command, point)) != -signal.SIGKILL:
        return f"{point}: it was never reached"
    committed = committed_ids(store)
    if code_of(start(folder, folder / "second", command, "")) != 0:
        return f"{point}: {(folder / 'second.log').read_text()[-500:]}"
    rows = [json.loads(row) for row in (folder / "out.jsonl").read_bytes().splitlines()]
    return wrong(point, rows, committed & executed(folder / "second"))


def killed_runner(folder: Path, point: str) -> str:
    store = folder / "store"
    store.mkdir(parents=True)
    batch_id = create(store)
    if code_of(start_runner(store, folder / "first", point)) != -signal.SIGKILL:
        return f"{point}: it was never reached"
    committed = committed_ids(store)
    if code_of(start_runner(store, folder / "second", "")) != 0:
        return f"{point}: {(folder / 'second.log').read_text()[-500:]}"
    return wrong(point, results(store, batch_id), committed & executed(folder / "second"))


def killed_create(folder: Path, point: str, other_port: int) -> str:
    process, port = start_api(folder / "store", folder / point.replace(":", "-"), point)
    headers = {"content-type": "application/x-ndjson", "idempotency-key": point}
    answers: list[str] = []
    for place in (port, other_port):
        url = f"http://127.0.0.1:{place}{BATCHES}?stage=email"
        try:
            answer = httpx.post(url, content=request_lines(), headers=headers, timeout=WAIT_S, trust_env=False)
            answers.append(f"{answer.status_code} {answer.text}")
        except httpx.TransportError:
            answers.append("")
    process.kill()
    code_of(process)
    return "" if not answers[0] and answers[1].startswith("200 ") else f"{point}: {answers}"


def wrong(point: str, rows: list[dict[str, object]], repeated: set[str]) -> str:
    if [row["custom_id"] for row in rows] != [f"r{number}" for number in range(NUM_REQUESTS)]:
        return f"{point}: {len(rows)} results, or another order"
    if {row["status"] for row in rows} != {"succeeded"}:
        return f"{point}: not all succeeded"
    return f"{point}: {len(repeated)} requests ran again although a checkpoint held them" if repeated else ""


def request_lines() -> bytes:
    message = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
    rows = ({"custom_id": f"r{number}", "params": message} for number in range(NUM_REQUESTS))
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def create(store: Path) -> str:
    ledger, routing = Ledger(store=DirectoryStore(store, fsync=False)), load_settings().routing()
    batch_id = ledger.new_id()
    key = keys.input_key(batch_id, "n")
    ledger.store.put(key, request_lines())
    planned = plan_input(ledger, batch_id, key, routing=routing, stage="email")
    draft = batches.Draft(batch_id=batch_id, routing=routing, defaults=Defaults(), stage="email")
    batches.create(ledger, draft, planned)
    return batch_id


def start(folder: Path, name: Path, command: list[str], point: str) -> Warm:
    """`name`: its log and its file of executions begin with it. It has both ends of its input, which so never ends."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), VARIABLE: point, "BATCHFILE_ECHO_SLOTS": "16"}
    environ["BATCHFILE_ECHO_EXECUTIONS"] = f"{name}.executions"
    os.mkfifo(f"{name}.in")
    with Path(f"{name}.log").open("wb") as log, Path(f"{name}.in").open("rb+", buffering=0) as stdin:
        return Warm(command[0], command[1:], cwd=folder, env=environ, stdin=stdin, stdout=log, stderr=log)


def code_of(process: Warm) -> int:
    return process.wait(WAIT_S)


def start_runner(store: Path, name: Path, point: str) -> Warm:
    """One runner without its supervisor, which ends with the work."""
    options = ["--pool", "mistral", "--engine", "echo", "--metrics-port", "0", "--drain", "--slot", "0"]
    return start(store.parent, name, ["runners", *options, "--store", str(store)], point)


def start_api(store: Path, name: Path, point: str) -> tuple[Warm, int]:
    [port] = free_ports(1)
    process = start(store.parent, name, ["api", "--port", str(port), "--store", str(store)], point)
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(f"http://127.0.0.1:{port}/version", timeout=WAIT_S, trust_env=False)
            return process, port
        except httpx.TransportError:
            time.sleep(0.05)
    pytest.fail(f"{point}: {Path(f'{name}.log').read_text()[-2000:]}")


def executed(name: Path) -> set[str]:
    path = Path(f"{name}.executions")
    return set(path.read_text().splitlines()) if path.exists() else set()


def committed_ids(folder: Path) -> set[str]:
    """The requests whose results a shard record names."""
    if not folder.is_dir():
        return set()
    store, found = DirectoryStore(folder), set()
    for entry in store.list("batches/"):
        if kind_of(entry.key) != "shard":
            continue
        record = json.loads(store.get(entry.key).data)  # type: ignore[union-attr]
        parts = [part for named in record["parts"] if (part := store.get(named["key"])) is not None]
        found |= {json.loads(row)[2]["custom_id"] for part in parts for row in part.data.splitlines()}
    return found


def results(folder: Path, batch_id: str) -> list[dict[str, object]]:
    store = DirectoryStore(folder)
    batch = batches.read_batch(Ledger(store=store), batch_id)
    assert batch is not None
    if batch.results is None:
        return []
    return [json.loads(row) for row in b"".join(store.stream(batch.results.key)).splitlines()]
