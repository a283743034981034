"""`batchfile run` whose input grows or changes, while it runs and between two runs: real processes, the echo engine."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.service.test_run import WAIT_S, env, jsonl, num_executed, read, request, requests, run, wait_for
from tests.warm import Warm

NUM = 200
SHARDS = ".batchfile/batches/*/shards/local/*.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in.jsonl").write_bytes(requests(NUM))
    return tmp_path


def slowly(folder: Path, name: str = "in.jsonl") -> Warm:
    """A run of some seconds, of which something is committed when this returns."""
    log = folder / "executed"
    slow = env(BATCHFILE_ECHO_EXECUTIONS=str(log), BATCHFILE_ECHO_SLOTS="8", BATCHFILE_ECHO_LATENCY_S="0.1")
    process = Warm("batchfile", ["run", "--engine", "echo", name, "-o", "out.jsonl"], cwd=folder, env=slow)
    wait_for(lambda: any(b'"parts":[{' in path.read_bytes() for path in folder.glob(SHARDS)))
    return process


def again(folder: Path, *more: str, name: str = "in.jsonl") -> subprocess.CompletedProcess[bytes]:
    return run(folder, name, "-o", "out.jsonl", *more, BATCHFILE_ECHO_EXECUTIONS=str(folder / "executed"))


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def added(num: int = 3) -> bytes:
    return jsonl(*(request(f"new{n}", f"added words number {n}") for n in range(num)))


def ids(folder: Path) -> list[str]:
    return [line["custom_id"] for line in read(folder / "out.jsonl")]


OLD = [f"r{n}" for n in range(NUM)]
NEW = [f"new{n}" for n in range(3)]


def test_lines_appended_while_it_runs_cost_nothing_and_the_same_command_runs_them_alone(folder: Path) -> None:
    process = slowly(folder)
    append(folder / "in.jsonl", added())
    _, words = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, words
    assert ids(folder) == OLD
    assert {line["status"] for line in read(folder / "out.jsonl")} == {"succeeded"}
    assert not (folder / "out.jsonl.errors.jsonl").exists()
    assert b"lines were added to in.jsonl while it ran; the same command runs them" in words
    first = (folder / "out.jsonl").read_bytes()
    done = again(folder)
    assert done.returncode == 0, done.stderr
    assert ids(folder) == OLD + NEW
    assert (folder / "out.jsonl").read_bytes().startswith(first)
    assert num_executed(folder / "executed") == NUM + 3
    assert b"200 of 203 reused\n" in done.stderr
    assert again(folder).returncode == 0
    assert num_executed(folder / "executed") == NUM + 3


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_lines_appended_between_two_runs_cost_no_finished_result(folder: Path, number: signal.Signals) -> None:
    process = slowly(folder)
    process.send_signal(number)
    process.communicate(timeout=WAIT_S)
    append(folder / "in.jsonl", added())
    log = folder / "second"
    done = run(folder, "in.jsonl", "-o", "out.jsonl", BATCHFILE_ECHO_EXECUTIONS=str(log))
    assert done.returncode == 0, done.stderr
    assert ids(folder) == OLD + NEW
    assert {line["status"] for line in read(folder / "out.jsonl")} == {"succeeded"}
    receipt = json.loads((folder / "out.jsonl.receipt.json").read_text())
    assert receipt["reused"] > 0
    assert receipt["reused"] + num_executed(log) == NUM + 3
    assert receipt["usage"]["output_tokens"] == 5 * num_executed(log) - 3


def _touch(path: Path) -> None:
    os.utime(path, (1, 1))


def _chmod(path: Path) -> None:
    path.chmod(0o444)


def _hard_link(path: Path) -> None:
    os.link(path, path.with_name("link.jsonl"))


def _copy_over(path: Path) -> None:
    """As editors save."""
    path.with_name("new.jsonl").write_bytes(path.read_bytes())
    path.with_name("new.jsonl").replace(path)


@pytest.mark.parametrize("change", [_touch, _chmod, _hard_link, _copy_over])
def test_what_leaves_the_bytes_as_they_are_does_not_stop_a_run(folder: Path, change: Callable[[Path], None]) -> None:
    process = slowly(folder)
    change(folder / "in.jsonl")
    _, words = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, words
    assert ids(folder) == OLD
    assert b"lines were added to" not in words
    assert again(folder).returncode == 0
    assert num_executed(folder / "executed") == NUM


def _edit(path: Path) -> None:
    """A rewrite that leaves size and mtime as they were."""
    before, data = path.stat(), path.read_bytes()
    with path.open("r+b") as file:
        file.write(data.replace(b"number 150 of", b"NUMBER 150 of"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _replace(path: Path) -> None:
    path.write_bytes(requests(NUM + 1)[1:])


@pytest.mark.parametrize("change", [_edit, _truncate, _replace, Path.unlink])
def test_of_an_input_that_was_changed_otherwise_nothing_is_lost(folder: Path, change: Callable[[Path], None]) -> None:
    data = (folder / "in.jsonl").read_bytes()
    process = slowly(folder)
    change(folder / "in.jsonl")
    _, words = process.communicate(timeout=WAIT_S)
    assert process.returncode == 3, words
    assert ids(folder) == OLD
    failed = [line for line in read(folder / "out.jsonl") if line["status"] != "succeeded"]
    assert 0 < len(failed) < NUM
    assert {line["error"]["type"] for line in failed} == {"input_changed"}
    assert read(folder / "out.jsonl.errors.jsonl") == failed
    told = (b"in.jsonl was changed while it ran", b"the same command runs the changed file and keeps what has finished")
    if change is Path.unlink:
        told = (b"in.jsonl was removed while it ran", b"restore the file and run the same command again")
    for part in (*told, b"out.jsonl.errors.jsonl lists them"):
        assert part in words
    assert b"input.changed" not in words, "a line of the log, which only -v shows"
    num_before = num_executed(folder / "executed")
    if change is not Path.unlink:
        changed = again(folder)
        assert changed.returncode in {0, 3}, "3: the first line of the file is damaged"
        assert b" reused\n" in changed.stderr
        assert len(ids(folder)) == len((folder / "in.jsonl").read_bytes().splitlines())
    (folder / "in.jsonl").write_bytes(data)
    done = again(folder)
    assert done.returncode == 0, done.stderr
    assert ids(folder) == OLD
    assert {line["status"] for line in read(folder / "out.jsonl")} == {"succeeded"}
    num_changed = num_executed(folder / "executed") - num_before - len(failed)
    assert 0 <= num_changed <= 2, "nothing is generated twice, whichever content comes back"


def test_a_file_that_goes_on_growing_is_copied_once(folder: Path) -> None:
    process = slowly(folder)
    for _ in range(5):
        append(folder / "in.jsonl", added(1))
        wait_for(lambda: len(list((folder / ".batchfile").rglob("input-*.jsonl"))) == 2 or process.poll() is not None)
    _, words = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, words
    assert ids(folder) == OLD
    (copied,) = [path for path in (folder / ".batchfile").rglob("input-*.jsonl") if not path.is_symlink()]
    assert copied.read_bytes() == requests(NUM)
