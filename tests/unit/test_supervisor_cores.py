"""Engines of one supervisor on a CPU do not share cores."""

import sys
from pathlib import Path

import pytest

from batchfile.engine.vllm.cpu import BIND
from runners.supervisor import Supervisor

SAY = "import os, sys; open(sys.argv[1], 'w').write(os.environ.get(sys.argv[2], 'none'))"


def cores_of_two(folder: Path, core_sets: list[str | None] | None) -> list[str]:
    def command(slot: int) -> list[str]:
        return [sys.executable, "-c", SAY, str(folder / str(slot)), BIND]

    assert Supervisor([None, None], command, 0.0, core_sets).reconcile() == 0
    return [(folder / str(slot)).read_text() for slot in range(2)]


def test_each_slot_gets_its_cores_unless_the_user_has_set_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(BIND, raising=False)
    assert cores_of_two(tmp_path, ["0,1", "2"]) == ["0,1", "2"]
    assert cores_of_two(tmp_path, None) == ["none", "none"]
    monkeypatch.setenv(BIND, "5")
    assert cores_of_two(tmp_path, ["0,1", "2"]) == ["5", "5"]
