"""Chaos: the service's processes are killed, paused and cut off from a store that misbehaves. And a soak."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def run(name: str, *options: str) -> dict[str, Any]:
    """The last line of what it says."""
    command = [sys.executable, "-m", f"tests.chaos.{name}", *options]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


@pytest.mark.parametrize(
    ("batches", "minutes", "more"),
    [(3, "0.4", ()), pytest.param(12, "4", ("--outage",), marks=pytest.mark.long)],
    ids=["short", "long"],
)
def test_under_chaos_every_batch_ends_with_one_result_each_and_a_key_makes_one_batch(
    batches: int, minutes: str, more: tuple[str, ...]
) -> None:
    row = run("chaos", f"--batches={batches}", f"--minutes={minutes}", "--gap=2", *more)
    assert row["batches"] == batches
    assert row["blows"] > 0  # how many fit into the time is the machine's affair
    assert row["problems"] == []
