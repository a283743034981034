"""`batchfile run --replicas`: several engines on one file, which end with the command however that ends."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import batchfile
from tests.warm import Warm

NUM = 150
WAIT_S = 1200.0  # only against a hang: no test depends on a machine's speed
IN_OUT = ["run", "--engine", "echo", "--replicas", "2", "in.jsonl", "-o", "out.jsonl"]
FOR_EVER = {"BATCHFILE_ECHO_SLOTS": "4", "BATCHFILE_ECHO_LATENCY_S": "3600"}
SLOW = {"BATCHFILE_ECHO_SLOTS": "4", "BATCHFILE_ECHO_LATENCY_S": "0.2"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "in.jsonl", "r")
    return tmp_path


def write(path: Path, name: str) -> None:
    lines = [
        {"custom_id": f"{name}{n}", "params": {"messages": [{"role": "user", "content": f"say {n}."}]}}
        for n in range(NUM)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


class Run:
    """A started command, with all that it has said on stderr."""

    def __init__(self, folder: Path, *arguments: str, **variables: str) -> None:
        self.folder, self.log = folder, folder / f"log-{time.monotonic_ns()}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("BATCHFILE_", "AWS_"))}
        environ = {**kept, "BATCHFILE_ECHO_EXECUTIONS": str(folder / "executed"), **variables}
        with self.log.open("wb") as file:
            self.process = Warm(
                "batchfile", arguments or IN_OUT, cwd=folder, env=environ, stdout=subprocess.DEVNULL, stderr=file
            )

    def ended(self, code: int) -> str:
        assert self.process.wait(WAIT_S) == code, self.log.read_text()
        said = self.log.read_text()
        assert "Traceback" not in said, said
        return said

    def until(self, is_so: Callable[[], object]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not is_so():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def replicas(self) -> list[int]:
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):
                parent = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1]
                words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
                if int(parent) == self.process.pid and b"batchfile.local.replica" in words:
                    found.append(int(name))
        return sorted(found)

    def executed(self) -> int:
        path = self.folder / "executed"
        return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Run]]:
    started: list[Run] = []

    def begin(*arguments: str, **variables: str) -> Run:
        started.append(Run(folder, *arguments, **variables))
        return started[-1]

    yield begin
    for run in started:
        run.process.kill()
        run.process.wait()


def ids(path: Path) -> list[str]:
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert {row["status"] for row in rows} == {"succeeded"}
    return [row["custom_id"] for row in rows]


def is_alive(pid: int) -> bool:
    with suppress(OSError):
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return False


def test_two_engines_share_a_file_and_make_one_output(start: Callable[..., Run], folder: Path) -> None:
    run = start(**SLOW)
    said = run.ended(0)
    assert said.count("all 2 replicas are ready") == 1
    assert said.count(f"{NUM} of {NUM} requests succeeded") == 1
    assert ids(folder / "out.jsonl") == [f"r{n}" for n in range(NUM)]
    assert run.executed() == NUM
    speed = json.loads((folder / "out.jsonl.receipt.json").read_text())["speed"]
    assert 0 < speed["requests"] <= NUM  # without those of the other replica since its last report
    assert speed["slots"] in {4, 8}  # 4: one was done before the other was ready
    assert "already ended" in start().ended(0)


def test_several_files_are_written_as_each_of_them_ends(start: Callable[..., Run], folder: Path) -> None:
    write(folder / "more.jsonl", "m")
    start(*IN_OUT[:5], "in.jsonl", "more.jsonl", "-o", "results/", **SLOW).ended(0)
    assert ids(folder / "results" / "in.jsonl") == [f"r{n}" for n in range(NUM)]
    assert ids(folder / "results" / "more.jsonl") == [f"m{n}" for n in range(NUM)]


def test_a_replica_that_is_killed_is_started_again_and_loses_nothing(start: Callable[..., Run], folder: Path) -> None:
    run = start(**SLOW)
    run.until(lambda: "replicas are ready" in run.log.read_text() and run.executed() >= 8)
    killed = run.replicas()[0]
    os.kill(killed, signal.SIGKILL)
    said = run.ended(0)
    assert re.search(r"replica \d was killed by SIGKILL; it is started again, and the others take over", said)
    assert "child.died" not in said
    assert ids(folder / "out.jsonl") == [f"r{n}" for n in range(NUM)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_what_is_in_flight_and_the_same_command_resumes(
    start: Callable[..., Run], folder: Path, number: signal.Signals
) -> None:
    run = start(**SLOW)
    run.until(lambda: "replicas are ready" in run.log.read_text() and run.executed() >= 8)
    replicas = run.replicas()
    run.process.send_signal(number)
    assert "stopping: finishing" in run.ended(128 + number)
    assert not any(map(is_alive, replicas))
    num = run.executed()
    assert num < NUM
    assert "resuming" in start().ended(0)
    assert ids(folder / "out.jsonl") == [f"r{n}" for n in range(NUM)]
    assert run.executed() == NUM


def test_a_second_signal_does_not_wait(start: Callable[..., Run]) -> None:
    run = start(*IN_OUT, "--grace", "3600", **FOR_EVER)
    run.until(lambda: run.executed() >= 8)
    replicas = run.replicas()
    run.process.send_signal(signal.SIGINT)
    run.until(lambda: "stopping: finishing" in run.log.read_text())
    run.process.send_signal(signal.SIGINT)
    run.ended(130)
    assert not any(map(is_alive, replicas))


def test_no_replica_outlives_a_command_that_is_killed(start: Callable[..., Run]) -> None:
    run = start(*IN_OUT, "--grace", "3600", **FOR_EVER)
    run.until(lambda: run.executed() >= 8)
    replicas = run.replicas()
    assert len(replicas) == 2
    run.process.kill()
    run.until(lambda: not any(map(is_alive, replicas)))


def test_a_signal_while_the_first_engine_loads_ends_the_command(start: Callable[..., Run]) -> None:
    run = start(BATCHFILE_ECHO_SLOTS="4")
    run.until(run.replicas)
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait(WAIT_S) in {143, 0}  # it may have been done already
    assert run.replicas() == []


def test_a_wrong_setting_ends_the_run_with_its_message(start: Callable[..., Run]) -> None:
    said = start(BATCHFILE_ECHO_SLOTS="none").ended(2)
    assert "BATCHFILE_ECHO_SLOTS" in said
    assert "started again" not in said


def test_a_store_in_memory_cannot_be_shared(start: Callable[..., Run]) -> None:
    said = start(*IN_OUT, "--store", "memory:").ended(2)
    assert "--store memory:" in said
    assert "use a directory" in said


def test_the_function_runs_replicas_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHFILE_ECHO_SLOTS", "4")
    receipt = batchfile.run(
        folder / "in.jsonl", folder / "out.jsonl", engine="echo", replicas=2, progress=False, store=folder / "store"
    )
    assert receipt.counts.succeeded == NUM
    assert ids(folder / "out.jsonl") == [f"r{n}" for n in range(NUM)]


def test_a_replica_whose_run_has_ended_while_it_started_ends_silently() -> None:
    command = [sys.executable, "-m", "batchfile.local.replica"]
    done = subprocess.run(command, input=b"", capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.long
def test_a_request_that_kills_replicas_fails_alone(start: Callable[..., Run], folder: Path) -> None:
    said = start(BATCHFILE_ECHO_KILL="say 7.").ended(3)
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_bytes().splitlines()]
    assert [row["custom_id"] for row in rows if row["status"] != "succeeded"] == ["r7"]
    assert len(rows) == NUM
    assert "runner_crash" in said
