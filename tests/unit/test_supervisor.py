"""The supervisor: what each process gets, in which order they start, and when a slot is given up."""

import sys
from pathlib import Path

import pytest

from batchfile.machine.supervisor import LOADS_MAX, SlotPlan, Supervisor

READY = """import os; os.write(1, b'{"is_ready": true}\\n')"""


def plan(program: str, group: str = "", **environ: str) -> SlotPlan:
    return SlotPlan(command=[sys.executable, "-c", program], environ=environ, group=group)


def test_each_process_gets_its_own_variables_and_input(tmp_path: Path) -> None:
    program = f"import os, sys; open({str(tmp_path)!r} + '/' + os.environ['NAME'], 'w').write(sys.stdin.readline())"
    command = [sys.executable, "-c", program]
    plans = [SlotPlan(command=command, environ={"NAME": name}, stdin=f"{name}\n".encode()) for name in "ab"]
    assert Supervisor(plans, 0.0).reconcile() == 0
    assert [(tmp_path / name).read_text() for name in "ab"] == ["a\n", "b\n"]


@pytest.mark.slow
def test_the_first_of_a_group_is_ready_before_the_others_start(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write = f"open({str(log)!r}, 'a').write(os.environ['NAME'] + '\\n')"
    program = f"import os, time; {write}; time.sleep(0.3); {write}; {READY}; time.sleep(0.3)"
    groups = ["a", "a", "a", "b"]
    names = ["a1", "a2", "a3", "b1"]
    plans = [plan(program, group, NAME=name) for group, name in zip(groups, names, strict=True)]
    assert Supervisor(plans, 0.0).reconcile() == 0
    of_a = [name for name in log.read_text().split() if name != "b1"]
    assert of_a[:2] == ["a1", "a1"]
    assert sorted(of_a[2:]) == ["a2", "a2", "a3", "a3"]


def test_another_starts_if_the_first_of_a_group_has_ended(tmp_path: Path) -> None:
    """A slot that cannot live, such as on a broken GPU, keeps no other from starting."""
    flag = tmp_path / "flag"
    plans = [plan("raise SystemExit(2)"), plan(f"open({str(flag)!r}, 'w')")]
    assert Supervisor(plans, 0.0).reconcile() == 2
    assert flag.exists()


@pytest.mark.slow
def test_a_slot_that_never_gets_ready_is_given_up_where_that_is_wanted() -> None:
    ends: list[int] = []
    plans = [plan("raise SystemExit(1)")]
    supervisor = Supervisor(plans, 0.0, gives_up=True, on_exit=lambda slot, code: ends.append(code))
    assert supervisor.reconcile() == 1
    assert ends == [1] * LOADS_MAX


def test_what_a_process_reports_is_passed_on_whole() -> None:
    lines: list[tuple[int, bytes]] = []
    supervisor = Supervisor([plan(READY)], 0.0, on_report=lambda number, line: lines.append((number, line)))
    assert supervisor.reconcile() == 0
    assert lines == [(0, b'{"is_ready": true}\n')]
