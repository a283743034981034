"""A short chaos run: the service's processes are killed, paused and cut off from a store that misbehaves."""

import json
import subprocess
import sys
from pathlib import Path


def test_under_chaos_every_batch_ends_with_one_result_each_and_a_key_makes_one_batch() -> None:
    command = [sys.executable, "-m", "tests.chaos.chaos", "--batches", "5", "--minutes", "0.5", "--gap", "2"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["batches"] == 5
    assert row["blows"] > 0  # how many fit into half a minute is the machine's affair
    assert row["problems"] == []
