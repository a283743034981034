"""`kill -9` of `batchfile run` on real vLLM, three times over one batch; the fourth command finishes it.

What a checkpoint held is not generated again: the last process answers exactly what was missing when it began.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from batchfile.store.directory import DirectoryStore

EXAMPLE = Path(__file__).parents[2] / "examples" / "leads.jsonl"
NUM_REQUESTS = 60
NUM_KILLS = 3
RUN_TIMEOUT_S = 400

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]


def command(model: str) -> list[str]:
    base = [sys.executable, "-m", "batchfile", "run", str(EXAMPLE), "-o", "out.jsonl", "-v"]
    return [*base, "--limit", str(NUM_REQUESTS), "--model", model, "--max-model-len", "1024", "--max-num-seqs", "8"]


def committed(folder: Path) -> int:
    """How many results the shard records name at this moment."""
    if not (folder / ".batchfile").is_dir():
        return 0
    store = DirectoryStore(folder / ".batchfile")
    records = (store.get(entry.key) for entry in store.list("batches/") if "/shards/" in entry.key)
    return sum(json.loads(record.data)["counts"]["succeeded"] for record in records if record is not None)


def kill_after_progress(folder: Path, model: str, seed: int) -> None:
    """Start, wait until more is committed than before, a random moment longer, kill the process and its engine."""
    before, deadline = committed(folder), time.monotonic() + RUN_TIMEOUT_S
    process = subprocess.Popen(
        command(model), cwd=folder, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
    )
    while committed(folder) <= before and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(random.Random(seed).uniform(0, 2))
    assert process.poll() is None, "the run ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert committed(folder) > before


def test_three_kills_lose_nothing_and_repeat_nothing_committed(tmp_path: Path, model_path: str) -> None:
    for seed in range(NUM_KILLS):
        kill_after_progress(tmp_path, model_path, seed)
    left = NUM_REQUESTS - committed(tmp_path)
    assert left > 0
    done = subprocess.run(
        command(model_path), cwd=tmp_path, stderr=subprocess.PIPE, text=True, timeout=RUN_TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    ended = re.search(r"runner\.ended.*succeeded=(\d+)", done.stderr)
    assert ended is not None, done.stderr[-4000:]
    assert int(ended[1]) == left
    wanted = [json.loads(line)["custom_id"] for line in EXAMPLE.read_bytes().splitlines()[:NUM_REQUESTS]]
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert [row["custom_id"] for row in rows] == wanted
    assert {row["status"] for row in rows} == {"succeeded"}
