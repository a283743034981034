"""Compiling schemas in a process that may be killed: bounds, what is remembered, and whom the process outlives."""

import importlib.util
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

from batchfile.engine.vllm.processes import ProcessGuard
from batchfile.schemas import compile
from batchfile.schemas.compile import SchemaCheck

HERE = str(Path(__file__).parent)
POISON = {"type": "string", "pattern": "^[a-z]{1,50000}$"}
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

Maker = Callable[[bytes], SchemaCheck]


def asked(do: str, **more: Any) -> bytes:
    return msgspec.json.encode({"do": do, **more})


def answer(check: SchemaCheck, data: bytes) -> bytes:
    verdict = check.check(data)
    assert verdict is not None
    assert verdict.answer is not None
    return verdict.answer


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Maker]:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([HERE, str(Path(__file__).parents[2])]))
    # A busy machine may give a process nothing for a second: here the owner waits longer, as with the usual limits.
    monkeypatch.setattr(compile.compile_worker, "STARVED", 1000)
    made: list[SchemaCheck] = []

    def build(payload: bytes = b"") -> SchemaCheck:
        made.append(SchemaCheck("judge_for_tests", payload))
        return made[-1]

    yield build
    for check in made:
        check.close()


@pytest.mark.skipif(importlib.util.find_spec("xgrammar") is None, reason="xgrammar comes with vLLM")
def test_xgrammar_takes_good_schemas_and_one_that_it_compiles_for_minutes_meets_the_time_bound(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compile, "TIME_S_MAX", 2.0)
    check = make(b"xgrammar")
    assert answer(check, asked("compile", schema={"type": "string"})) == b"compiled"
    pid = check.pid
    verdict = check.check(asked("compile", schema=POISON))
    assert verdict is not None
    assert (verdict.answer, verdict.bound, verdict.limit) == (None, "time", "2 s")
    assert answer(check, asked("compile", schema={"type": "integer"})) == b"compiled"
    assert answer(check, asked("compile", schema={"$ref": "#/no"})).startswith(b"refused")
    assert check.pid == pid, "what was loaded is not loaded again"


def test_no_process_starts_before_the_first_schema_and_a_verdict_is_remembered(make: Maker) -> None:
    check = make(b"")
    assert check.pid is None
    first = answer(check, asked("", n=1))
    assert answer(check, asked("", n=1)) == first, "the process is not asked again: each time it forks another"
    assert answer(check, asked("", n=2)) != first


@pytest.mark.parametrize("do", [asked("allocate", bytes=3 << 30), asked("crash"), asked("end")])
def test_one_that_takes_too_much_memory_or_ends_its_compiler_fails_alone(make: Maker, do: bytes) -> None:
    check = make(b"")
    assert answer(check, asked("allocate", bytes=64 << 20)) == str(64 << 20).encode()
    verdict = check.check(do)
    assert verdict is not None
    assert (verdict.answer, verdict.bound, verdict.limit) == (None, "memory", "2 GiB")
    assert answer(check, asked("")), "the next one is served"


def test_a_slow_machine_fails_no_schema(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is past the bound by the clock, and has not computed for so long."""
    monkeypatch.setattr(compile, "TIME_S_MAX", 0.2)
    check = make(b"")
    assert answer(check, asked("sleep", s=0.5))
    verdict = check.check(asked("sleep", s=60))
    assert verdict is not None
    assert verdict.bound == "time", "but it does not wait without end"


def test_after_a_few_that_met_the_bound_the_next_get_less(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile, "TIME_S_MAX", 0.1)
    monkeypatch.setattr(compile, "TIME_S_HURRIED", 0.05)
    check = make(b"")
    limits = []
    for n in range(5):
        verdict = check.check(asked("sleep", s=60, n=n))
        assert verdict is not None
        limits.append(verdict.limit)
    assert limits == ["0.1 s"] * 3 + ["0.05 s"] * 2


def test_the_slow_schemas_of_one_owner_leave_the_others_their_time(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compile, "TIME_S_MAX", 0.1)
    monkeypatch.setattr(compile, "TIME_S_HURRIED", 0.05)
    check = make(b"")

    def limit(n: int, owner: str) -> str:
        verdict = check.check(asked("sleep", s=60, n=n), owner)
        assert verdict is not None
        return verdict.limit

    assert [limit(n, "a") for n in range(4)] == ["0.1 s"] * 3 + ["0.05 s"]
    assert check.known(asked("sleep", s=60, n=0)) is not None, "it had the whole time"
    assert check.known(asked("sleep", s=60, n=3)) is None, "what was too little for one owner judges no other"
    assert (limit(3, "a"), limit(3, "b"), limit(3, "a")) == ("0.05 s", "0.1 s", "0.1 s")
    assert check.known(asked("sleep", s=60, n=3)) is not None


def test_a_process_that_was_killed_is_started_again(make: Maker) -> None:
    check = make(b"")
    answer(check, asked("", n=1))
    pid = check.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not is_running(pid))
    assert answer(check, asked("", n=2))
    assert check.pid != pid


def test_what_does_not_load_checks_nothing_and_is_not_tried_without_end(make: Maker) -> None:
    check = make(b"cannot")
    assert [check.check(asked("", n=n)) for n in range(9)] == [None] * 9
    assert check.pid is None


def test_closing_ends_the_process(make: Maker) -> None:
    check = make(b"")
    answer(check, asked(""))
    pid = check.pid
    assert pid is not None
    check.close()
    assert not is_running(pid)
    assert check.check(asked("", n=2)) is None


@pytest.mark.parametrize("guarded", [False, True])
def test_it_does_not_outlive_its_owner(make: Maker, guarded: bool) -> None:
    """Killed while the process compiles."""
    program = (
        "import threading, time\n"
        "from batchfile.engine.vllm.processes import ProcessGuard\n"
        "from batchfile.schemas.compile import SchemaCheck\n"
        f"check = SchemaCheck('judge_for_tests', b'', ProcessGuard() if {guarded} else None)\n"
        "check.check(b'{}')\n"
        "print('PID', check.pid, flush=True)\n"
        'check.check(b\'{"do": "sleep", "s": 600}\')\n'
    )
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pid = int(next(line for line in owner.stdout if line.startswith("PID")).split()[1])
    forks = Path(f"/proc/{pid}/task/{pid}/children")
    wait_for(lambda: forks.read_text() != "")
    fork = int(forks.read_text())
    owner.kill()
    owner.wait()
    owner.stdout.close()
    wait_for(lambda: not is_running(pid) and not is_running(fork))


def test_a_guard_knows_the_process(make: Maker) -> None:
    guard = ProcessGuard()
    check = SchemaCheck("judge_for_tests", b"", guard)
    answer(check, asked(""))
    pid = check.pid
    assert pid is not None
    guard.close()
    wait_for(lambda: not is_running(pid))
    check.close()
