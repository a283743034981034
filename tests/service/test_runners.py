"""`python -m runners` as real processes with the echo engine: what it does to batches and children, when it ends."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import boto3
import pytest
import structlog

from batchfile import Ledger, open_store
from batchfile.types import Defaults
from tests.helpers.fleet import parse, serving
from tests.helpers.ledger import BatchRecord, ShardRecord, batches, keys, load, read_heartbeats
from tests.helpers.plan import plan_input
from tests.helpers.settings import DEFAULT_POOLS, load_settings
from tests.helpers.store import DirectoryStore
from tests.warm import Warm

ROOT = Path(__file__).parents[2]
WAIT_S = 1200.0  # only against a hang: no test depends on a machine's speed
POOLS = ("mistral", "llama-70b")
# Nothing finishes by itself for as long as any test runs.
FOR_EVER = {"BATCHFILE_ECHO_LATENCY_S": "3600"}
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


class Supervisor:
    """A started one, with all that it and its children have said."""

    def __init__(self, folder: Path, *arguments: str, **variables: str) -> None:
        self.log = folder / f"log-{time.monotonic_ns()}"
        arguments = ("--engine", "echo", "--metrics-port", "0", *arguments)
        environ = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
        with self.log.open("wb") as file:
            self.process = Warm("runners", arguments, cwd=folder, env=environ, stdout=file, stderr=file)

    def events(self, name: str) -> list[dict[str, Any]]:
        """Every logged event of this name; a line that is being written is not there yet."""
        found = []
        for row in self.log.read_bytes().splitlines():
            with suppress(ValueError):
                found.append(json.loads(row))
        return [event for event in found if event["event"] == name]

    def children(self) -> list[int]:
        return [event["child"] for event in self.events("child.started")]

    def ended(self) -> int:
        try:
            return self.process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it did not end: {self.log.read_text()[-3000:]}")

    def until(self, is_so: Callable[[], object]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not is_so():
            if time.monotonic() > deadline:
                pytest.fail(f"it never came: {self.log.read_text()[-3000:]}")
            time.sleep(0.05)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Supervisor]]:
    """Starts supervisors; a test that fails leaves none, and a supervisor leaves no child."""
    started: list[Supervisor] = []

    def begin(*arguments: str, **variables: str) -> Supervisor:
        started.append(Supervisor(tmp_path, *arguments, **variables))
        return started[-1]

    yield begin
    for supervisor in started:
        supervisor.process.kill()
        supervisor.process.wait()


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(store=DirectoryStore(tmp_path / ".batchfile"))


def create(ledger: Ledger, pools: list[str], batch_id: str = "b") -> None:
    """A batch with one request for each of `pools`, in order."""
    rows = [
        {
            "custom_id": f"r{n}",
            "params": {"messages": [{"role": "user", "content": f"hello {n}"}]},
            "metadata": {"model_hint": pool},
        }
        for n, pool in enumerate(pools)
    ]
    key, routing = keys.input_key(batch_id, "n"), load_settings().routing()
    ledger.store.put(key, "\n".join(map(json.dumps, rows)).encode())
    planned = plan_input(ledger, batch_id, key, routing=routing)
    batches.create(ledger, batches.Draft(batch_id=batch_id, routing=routing, defaults=Defaults()), planned)


def read(ledger: Ledger, batch_id: str = "b") -> BatchRecord:
    batch = batches.read_batch(ledger, batch_id)
    assert batch is not None
    return batch


def results(ledger: Ledger, batch_id: str = "b") -> list[dict[str, Any]]:
    batch = read(ledger, batch_id)
    assert batch.state == "ended"
    assert batch.results is not None
    return [json.loads(row) for row in b"".join(ledger.store.stream(batch.results.key)).splitlines()]


def shards(ledger: Ledger) -> list[ShardRecord]:
    found = [entry.key for entry in ledger.store.list(keys.shards_prefix("b"))]
    return [found.record for key in found if (found := load(ledger, key, ShardRecord))]


def states(ledger: Ledger) -> list[str]:
    return [record.state for record in read_heartbeats(ledger)]


def is_alive(pid: int) -> bool:
    with suppress(OSError):
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return False


def test_one_worker_runs_several_pools(start: Callable[..., Supervisor], ledger: Ledger) -> None:
    create(ledger, [POOLS[n % 2] for n in range(100)])
    supervisor = start("--pool", POOLS[0], "--pool", POOLS[1], "--drain")
    assert supervisor.ended() == 0
    assert [row["custom_id"] for row in results(ledger)] == [f"r{n}" for n in range(100)]
    assert {event["group"] for event in supervisor.events("child.started")} == set(POOLS)


def test_two_pools_share_a_batch_and_its_results_are_in_input_order(
    start: Callable[..., Supervisor], ledger: Ledger
) -> None:
    pools = [POOLS[n % 2] for n in range(100)]
    create(ledger, pools)
    fleet = [start("--pool", pool, "--drain") for pool in POOLS]
    assert [supervisor.ended() for supervisor in fleet] == [0, 0]
    rows = results(ledger)
    assert [row["custom_id"] for row in rows] == [f"r{n}" for n in range(100)]
    assert [row["model"] for row in rows] == [DEFAULT_POOLS[pool]["model"] for pool in pools]
    assert read_heartbeats(ledger) == []


def test_a_killed_child_is_started_again_and_every_request_has_one_result(
    start: Callable[..., Supervisor], ledger: Ledger, tmp_path: Path
) -> None:
    executions = tmp_path / "executions"
    create(ledger, ["mistral"] * 200)
    variables = {
        "BATCHFILE_ECHO_LATENCY_S": "0.05",
        "BATCHFILE_ECHO_SLOTS": "4",
        "BATCHFILE_ECHO_EXECUTIONS": str(executions),
    }
    supervisor = start("--pool", "mistral", **variables)
    supervisor.until(lambda: executions.exists() and executions.read_bytes().count(b"\n") >= 20)
    os.kill(supervisor.children()[0], signal.SIGKILL)
    supervisor.until(lambda: read(ledger).state == "ended")
    rows = results(ledger)
    assert Counter(row["custom_id"] for row in rows) == {f"r{n}": 1 for n in range(200)}
    assert {row["status"] for row in rows} == {"succeeded"}
    assert len(supervisor.children()) == 2
    assert supervisor.events("child.died")[0]["code"] == -signal.SIGKILL


def test_sigterm_gives_back_what_is_held_and_answers_0(start: Callable[..., Supervisor], ledger: Ledger) -> None:
    create(ledger, ["mistral"] * 40)
    supervisor = start("--pool", "mistral", BATCHFILE_LIMITS__GRACE_S="0.1", **FOR_EVER)
    supervisor.until(lambda: states(ledger) == ["running"] and read_heartbeats(ledger)[0].in_flight)
    assert {record.state for record in shards(ledger)} == {"leased"}
    supervisor.process.terminate()
    assert supervisor.ended() == 0
    assert {record.state for record in shards(ledger)} == {"open"}
    assert read_heartbeats(ledger) == []


def test_a_second_signal_does_not_wait_for_what_is_in_flight(start: Callable[..., Supervisor], ledger: Ledger) -> None:
    create(ledger, ["mistral"] * 40)
    supervisor = start("--pool", "mistral", BATCHFILE_LIMITS__GRACE_S="3600", **FOR_EVER)
    supervisor.until(lambda: states(ledger) == ["running"])
    supervisor.process.send_signal(signal.SIGINT)
    supervisor.until(lambda: states(ledger) == ["draining"])
    supervisor.process.send_signal(signal.SIGINT)
    assert supervisor.ended() == 0
    assert {record.state for record in shards(ledger)} == {"open"}


def test_signals_end_a_runner_whose_engine_does_not_return(start: Callable[..., Supervisor], ledger: Ledger) -> None:
    """And what it holds is not given back: the death counts for the line that the engine hangs on."""
    create(ledger, ["mistral"] * 4)
    supervisor = start("--pool", "mistral", BATCHFILE_ECHO_HANG="hello 3", BATCHFILE_LIMITS__GRACE_S="0.1")
    supervisor.until(lambda: any(heartbeat.in_flight for heartbeat in read_heartbeats(ledger)))
    [child] = supervisor.children()
    for num in (1, 2):
        supervisor.process.terminate()
        supervisor.until(lambda num=num: len(supervisor.events("fleet.stopping")) == num)
    assert supervisor.ended() == 1
    assert not is_alive(child)
    assert supervisor.events("runner.ended_by_force")[0]["signal"] == signal.SIGTERM
    assert [event["is_killed"] for event in supervisor.events("fleet.stopping")] == [False, False]
    assert {record.state for record in shards(ledger)} == {"leased"}


def test_no_child_outlives_a_supervisor_that_was_killed(start: Callable[..., Supervisor], ledger: Ledger) -> None:
    create(ledger, ["mistral"] * 40)
    supervisor = start("--pool", "mistral", "--slots", "2", BATCHFILE_LIMITS__GRACE_S="0.1", **FOR_EVER)
    supervisor.until(lambda: len(states(ledger)) == 2 and "running" in states(ledger))
    children = supervisor.children()
    assert all(map(is_alive, children))
    supervisor.process.kill()
    supervisor.until(lambda: not any(map(is_alive, children)))
    assert {record.state for record in shards(ledger)} == {"open"}
    assert read_heartbeats(ledger) == []


def test_an_idle_runner_ends_after_its_time_and_not_before_its_work_is_done(
    start: Callable[..., Supervisor], ledger: Ledger
) -> None:
    create(ledger, ["mistral"] * 20)
    supervisor = start("--pool", "mistral", "--idle-exit", "0.5")
    assert supervisor.ended() == 0
    assert len(results(ledger)) == 20


def test_a_drained_pool_leaves_the_other_pools_work_alone(start: Callable[..., Supervisor], ledger: Ledger) -> None:
    create(ledger, ["mistral", "llama-70b"])
    assert start("--pool", "mistral", "--drain").ended() == 0
    assert read(ledger).state == "open"
    assert [(record.pool, record.state) for record in shards(ledger)] == [("mistral", "done")]


def test_an_idle_runner_of_any_pool_is_a_janitor(start: Callable[..., Supervisor], ledger: Ledger) -> None:
    create(ledger, ["mistral"])
    assert start("--pool", "mistral", "--drain").ended() == 0
    supervisor = start("--pool", "llama-70b", BATCHFILE_LIMITS__RETENTION_S="0.001")
    supervisor.until(lambda: batches.read_batch(ledger, "b") is None)


def test_a_runner_that_waits_for_its_store_answers_that_it_lives(start: Callable[..., Supervisor]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    away = "s3://bucket/away?endpoint=http://127.0.0.1:9&region=us-east-1"
    supervisor = start("--pool", "mistral", "--metrics-port", str(port), "--store", away, **CREDENTIALS)
    supervisor.until(lambda: supervisor.events("store.awaited"))
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=WAIT_S) as answer:
        assert answer.read() == b"ok\n"


def test_a_runner_takes_the_next_port_for_its_page_where_another_has_the_first() -> None:
    with ExitStack() as stack:
        other = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        events = stack.enter_context(structlog.testing.capture_logs())
        stack.enter_context(serving("127.0.0.1", [other.getsockname()[1], 0]))
        [event] = events
        with urllib.request.urlopen(f"http://127.0.0.1:{event['port']}/healthz", timeout=WAIT_S) as answer:
            assert answer.read() == b"ok\n"
    assert event["event"] == "metrics.served"


def test_a_port_that_was_given_is_the_only_one_tried() -> None:
    assert list(parse(["--pool", "mistral"]).metrics_ports(1))[:2] == [9401, 9402]
    assert list(parse(["--pool", "mistral", "--metrics-port", "9500"]).metrics_ports(1)) == [9501]
    assert list(parse(["--pool", "mistral", "--metrics-port", "0"]).metrics_ports(1)) == []


def test_a_page_that_can_not_be_had_costs_no_runner(start: Callable[..., Supervisor], ledger: Ledger) -> None:
    """The second slot's port would be 65536."""
    supervisor = start("--pool", "mistral", "--slots", "2", "--metrics-port", "65535")
    supervisor.until(lambda: len(read_heartbeats(ledger)) == 2)
    assert supervisor.events("child.died") == []
    assert 65536 in [event["port"] for event in supervisor.events("metrics.not_served")]


def test_the_health_of_a_runner_answers_head_too() -> None:
    with structlog.testing.capture_logs() as events, serving("127.0.0.1", [0]):
        asked = urllib.request.Request(f"http://127.0.0.1:{events[0]['port']}/healthz", method="HEAD")
        with urllib.request.urlopen(asked, timeout=WAIT_S) as answer:
            assert (answer.status, answer.headers["Content-Length"], answer.read()) == (200, "3", b"")


def test_the_metrics_page_counts_what_was_done(start: Callable[..., Supervisor], ledger: Ledger) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    create(ledger, ["mistral"] * 30)
    supervisor = start("--pool", "mistral", "--metrics-port", str(port))
    supervisor.until(lambda: read(ledger).state == "ended")

    def page(path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=WAIT_S) as answer:
            return str(answer.read().decode())

    labels = f'model="{DEFAULT_POOLS["mistral"]["model"]}"'
    lines = page("/metrics").splitlines()
    assert f'batchfile_runner_requests_total{{{labels},outcome="succeeded",pool="mistral"}} 30.0' in lines
    assert f'batchfile_runner_request_seconds_count{{{labels},pool="mistral"}} 30.0' in lines
    assert any(line.startswith("batchfile_runner_checkpoint_seconds_bucket") for line in lines)
    assert any(
        line.startswith('batchfile_store_requests_total{outcome="ok",pool="mistral",verb="put"}') for line in lines
    )
    assert not any("batch_id" in line for line in lines)
    assert page("/healthz") == "ok\n"
    supervisor.until(lambda: [p.totals.succeeded for p in read_heartbeats(ledger)] == [30])
    [heartbeat] = read_heartbeats(ledger)
    assert (heartbeat.pool, heartbeat.state, heartbeat.engine) == ("mistral", "idle", "echo")
    assert heartbeat.latency_p50_s is not None


def test_an_unknown_pool_is_refused_with_those_that_there_are(start: Callable[..., Supervisor]) -> None:
    supervisor = start("--pool", "gemini")
    assert supervisor.ended() == 2
    assert "llama-70b, mistral" in supervisor.events("process.refused")[0]["error"]
    assert supervisor.children() == []


def test_a_child_that_refuses_its_settings_is_not_started_again(start: Callable[..., Supervisor]) -> None:
    supervisor = start("--pool", "mistral", BATCHFILE_ECHO_SLOTS="none")
    assert supervisor.ended() == 2
    assert len(supervisor.children()) == 1


def test_a_child_that_dies_again_and_again_waits_longer_each_time(
    start: Callable[..., Supervisor], ledger: Ledger
) -> None:
    create(ledger, ["mistral"] * 4)
    supervisor = start("--pool", "mistral", BATCHFILE_ECHO_KILL="hello")
    supervisor.until(lambda: len(supervisor.events("child.died")) >= 3)
    waits = [event["again_in_s"] for event in supervisor.events("child.died")]
    assert all(low <= wait <= 2 * low for wait, low in zip(waits, (0.5, 1, 2, 4), strict=False))


def test_an_endpoint_that_is_down_is_waited_for_and_fails_nothing(
    start: Callable[..., Supervisor], ledger: Ledger
) -> None:
    chat_server = load_module(ROOT / "tests/contract/chat_server.py")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    create(ledger, ["mistral"] * 10)
    variables = {"BATCHFILE_POOLS__MISTRAL__BASE_URL": f"http://127.0.0.1:{port}"}
    supervisor = start("--engine", "http", "--pool", "mistral", **variables)
    supervisor.until(lambda: states(ledger) == ["down"])
    [told] = supervisor.events("pool.down")
    assert f"http://127.0.0.1:{port}/v1: no connection" in told["reason"]
    assert {record.state for record in shards(ledger)} == {"leased"}
    with chat_server.running(port):
        supervisor.until(lambda: read(ledger).state == "ended")
        supervisor.until(lambda: supervisor.events("pool.up"))
    assert {row["status"] for row in results(ledger)} == {"succeeded"}
    assert len(supervisor.events("pool.down")) == len(supervisor.events("pool.up")) == 1


def test_a_runner_whose_endpoint_is_down_stops_at_once(start: Callable[..., Supervisor], ledger: Ledger) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused for as long as the test runs
        create(ledger, ["mistral"] * 10)
        variables = {
            "BATCHFILE_POOLS__MISTRAL__BASE_URL": f"http://127.0.0.1:{taken.getsockname()[1]}",
            "BATCHFILE_LIMITS__GRACE_S": "3600",
        }
        supervisor = start("--engine", "http", "--pool", "mistral", **variables)
        supervisor.until(lambda: states(ledger) == ["down"])
        supervisor.process.terminate()
        assert supervisor.ended() == 0
    assert {record.state for record in shards(ledger)} == {"open"}


def test_a_bucket_that_is_down_at_the_start_is_waited_for(
    start: Callable[..., Supervisor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    url = f"s3://fleet/here?endpoint={endpoint}&region=us-east-1"
    supervisor = start("--pool", "mistral", "--store", url)
    supervisor.until(lambda: supervisor.events("store.awaited"))
    os.kill(supervisor.children()[0], signal.SIGSTOP)  # it does not look before the bucket is there
    script = ROOT / "tests/contract/locked_moto.py"
    moto = subprocess.Popen([sys.executable, script, str(port)], cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        ledger = Ledger(store=bucket(url, endpoint))
        create(ledger, ["mistral"] * 10)
        os.kill(supervisor.children()[0], signal.SIGCONT)
        supervisor.until(lambda: read(ledger).state == "ended")
        assert [p.pool for p in read_heartbeats(ledger)] == ["mistral"]
        supervisor.process.terminate()
        assert supervisor.ended() == 0
        assert read_heartbeats(ledger) == []
        assert len(results(ledger)) == 10
    finally:
        moto.kill()
        moto.wait()


def bucket(url: str, endpoint: str) -> Any:
    """The store `url` once its server answers, its bucket made."""
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            client.create_bucket(Bucket="fleet")
            break
        except client.exceptions.BucketAlreadyOwnedByYou:
            break
        except Exception:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    return open_store(url, prove=False)


def load_module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
