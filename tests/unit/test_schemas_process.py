"""Checking answers in a process that may be killed: bounds, what follows one that met them, and whom it outlives."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from batchfile.schemas import check as check_module
from batchfile.schemas.check import CheckProcess
from batchfile.schemas.child import Child

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
AHEAD = msgspec.json.encode({"type": "string", "pattern": "^(?!bad)"})
TWICE = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)}
BOMB: dict[str, Any] = {"$defs": TWICE | {"d40": {"type": "integer"}}, "$ref": "#/$defs/d0"}  # 2^40 steps
ENDLESS = msgspec.json.encode(BOMB)


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[CheckProcess]:
    monkeypatch.setattr(check_module, "TIME_S_MAX", 0.3)
    made = CheckProcess()
    yield made
    made.close()
    made.release()


def pid_of(process: CheckProcess) -> int:
    assert process._worker is not None
    return process._worker.pid


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_it_judges_one_after_the_other(process: CheckProcess) -> None:
    assert process.check(AHEAD, '"good"').kind == "fits"
    pid = pid_of(process)
    assert process.check(AHEAD, '"bad"') == ("mismatch", "answer does not fit pattern")
    assert process.check(b'{"type":"nonsense"}', "1").kind == "unusable"
    assert process.check(AHEAD, '"\ud800"') == ("mismatch", "the answer is not JSON")
    assert process.check(AHEAD, '"' + "x" * 3_000_000 + '"').kind == "fits"
    assert pid_of(process) == pid


def test_one_that_takes_too_long_is_given_up_and_the_next_is_served(process: CheckProcess) -> None:
    assert process.check(ENDLESS, "1") == ("unknown", "takes more than 0.3 s")
    assert process.check(AHEAD, '"good"').kind == "fits"


def test_after_a_few_of_one_schema_none_of_it_is_tried(process: CheckProcess) -> None:
    for _ in range(3):
        process.check(ENDLESS, "1")
    assert process.check(AHEAD, '"good"').kind == "fits"
    pid = pid_of(process)
    for _ in range(100):
        assert process.check(ENDLESS, "1").kind == "unknown"
    assert pid_of(process) == pid, "nothing was killed"


def test_after_a_few_of_any_schema_the_next_of_their_owner_get_less(
    process: CheckProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_module, "TIME_S_HURRIED", 0.1)
    schemas: list[dict[str, Any]] = [BOMB | {"title": str(n)} for n in range(5)]
    limits = [process.check(msgspec.json.encode(schema), "1").why for schema in schemas]
    assert limits == ["takes more than 0.3 s"] * 3 + ["takes more than 0.1 s"] * 2
    assert process.check(msgspec.json.encode(BOMB), "1", "another").why == "takes more than 0.3 s"


def test_a_process_that_was_killed_is_started_again(process: CheckProcess) -> None:
    process.check(AHEAD, '"good"')
    pid = pid_of(process)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not is_running(pid))
    assert process.check(AHEAD, '"good"').kind == "fits"
    assert pid_of(process) != pid


def test_one_that_ends_its_process_twice_is_given_up(process: CheckProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that takes too much memory does."""
    ended: list[int] = []

    def asked(worker: Child, *frame: bytes, timeout_s: float) -> list[bytes]:
        ended.append(worker.pid)
        worker.kill()
        return worker.answer(timeout_s)

    with monkeypatch.context() as patched:
        patched.setattr(Child, "ask", asked)
        found = process.check(AHEAD, '"good"')
    assert found == ("unknown", "crashes the checking process, which has 1 GiB of memory")
    assert len(set(ended)) == 2, "the first end may not be its fault"
    assert process.check(AHEAD, '"good"').kind == "fits"


def test_a_process_that_does_not_start_checks_nothing(process: CheckProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/python")
    assert process.check(AHEAD, '"good"').kind == "unknown"
    monkeypatch.setattr(sys, "executable", "/bin/true")
    assert process.check(AHEAD, '"good"').kind == "unknown"


def test_it_reads_no_module_of_the_working_directory_and_knows_no_secret(
    process: CheckProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "resource.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    assert process.check(AHEAD, '"good"').kind == "fits"
    assert b"sk-secret" not in Path(f"/proc/{pid_of(process)}/environ").read_bytes()


def test_closing_ends_it(process: CheckProcess) -> None:
    process.check(AHEAD, '"good"')
    pid = pid_of(process)
    process.close()
    process.release()
    assert not is_running(pid)
    assert process.check(AHEAD, '"good"').kind == "unknown"


def test_it_does_not_outlive_its_owner_that_is_killed_in_a_check() -> None:
    program = (
        "from batchfile.schemas import check as schemas\n"
        "schemas.TIME_S_MAX = 1.0\n"
        "process = schemas.CheckProcess()\n"
        f"process.check({AHEAD!r}, '1')\n"
        "print('PID', process._worker.pid, flush=True)\n"
        f"process.check({ENDLESS!r}, '1')\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert owner.stdout is not None
    pid = int(next(line for line in owner.stdout if line.startswith("PID")).split()[1])
    owner.kill()
    owner.wait()
    owner.stdout.close()
    wait_for(lambda: not is_running(pid))
