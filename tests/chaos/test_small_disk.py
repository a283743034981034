"""A service over a directory waits while its disk is full, and goes on when there is room."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.fleet import ON_A_SMALL_DISK, can_mount

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not can_mount(), reason="this machine lets nobody mount a small disk (unshare -rm)")
def test_a_full_disk_pauses_a_service_and_fails_nothing(tmp_path: Path) -> None:
    disk, logs = tmp_path / "disk", tmp_path / "logs"
    disk.mkdir()
    logs.mkdir()
    script = [sys.executable, "-m", "tests.chaos.small_disk", str(disk), str(logs)]
    command = ["unshare", "-rm", "sh", "-c", ON_A_SMALL_DISK, str(disk), *script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200, env=os.environ)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["refused"] == 503
    assert row["while_full"] > 0
    assert row["ended"] == [None, None], "a process gave up"
    assert row["results"] == [["600", "succeeded"]] * 2
