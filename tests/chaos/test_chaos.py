"""Chaos: the service's processes are killed, paused and cut off from a store that misbehaves."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("batches", "minutes", "more"),
    [(3, "0.4", ()), pytest.param(12, "4", ("--outage",), marks=pytest.mark.long)],
    ids=["short", "long"],
)
def test_under_chaos_every_batch_ends_with_one_result_each_and_a_key_makes_one_batch(
    batches: int, minutes: str, more: tuple[str, ...]
) -> None:
    options = (f"--batches={batches}", f"--minutes={minutes}", "--gap=2", *more)
    command = [sys.executable, "-m", "tests.chaos.chaos", *options]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["batches"] == batches
    assert row["blows"] > 0  # how many fit into the time is the machine's affair
    assert row["problems"] == []
