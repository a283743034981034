"""`kill -9` of `batchfile run` on real vLLM, once or, in the long form, three times over one batch; the next command
finishes it, although its engine is sent Ctrl-C and SIGTERM, as a terminal and systemd send them to a whole group.

What a checkpoint held is not generated again: the last process answers exactly what was missing when it began.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.helpers.store import DirectoryStore

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "leads.jsonl"
BENCH = ROOT / "tests" / "bench" / "engine.py"
NUM_REQUESTS = 40
MAX_TOKENS = 12
MARK = "BATCHFILE_TEST_KILL"

pytestmark = pytest.mark.vllm


def write_input(folder: Path) -> list[str]:
    """Short answers, two at a time: far more checkpoints than kills on any machine. The ids, in order."""
    rows = [json.loads(line) for line in EXAMPLE.read_bytes().splitlines()[:NUM_REQUESTS]]
    for row in rows:
        row["params"]["max_tokens"] = MAX_TOKENS
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [row["custom_id"] for row in rows]


def command(model: str) -> list[str]:
    base = [sys.executable, "-m", "batchfile", "run", "in.jsonl", "-o", "out.jsonl", "-v"]
    return [*base, "--model", model, "--max-model-len", "1024", "--max-num-seqs", "2"]


def marked(mark: str) -> list[int]:
    """Every process that was started with this mark in its environment."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if f"{MARK}={mark}".encode() in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                found.append(int(name))
    return found


def engine_processes(mark: str) -> list[int]:
    found = []
    for pid in marked(mark):
        with suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"VLLM::"):
                found.append(pid)
    return found


def wait_until(is_so: Callable[[], object]) -> None:
    """However long it takes: the suite has a limit for what hangs."""
    while not is_so():
        time.sleep(0.05)


def committed(folder: Path) -> int:
    """How many results the shard records name at this moment."""
    if not (folder / ".batchfile").is_dir():
        return 0
    store = DirectoryStore(folder / ".batchfile")
    records = (store.get(entry.key) for entry in store.list("batches/") if "/shards/" in entry.key)
    return sum(json.loads(record.data)["counts"]["succeeded"] for record in records if record is not None)


def start(
    folder: Path, model: str, mark: str, stdout: int = subprocess.DEVNULL, stderr: int = subprocess.DEVNULL
) -> "subprocess.Popen[bytes]":
    environ = {**os.environ, MARK: mark}
    return subprocess.Popen(
        command(model), cwd=folder, env=environ, stderr=stderr, stdout=stdout, start_new_session=True
    )


def kill_after_progress(folder: Path, model: str, mark: str) -> None:
    """Start, wait until more is committed than before, kill the process: its engine ends too."""
    before = committed(folder)
    process = start(folder, model, mark)
    wait_until(lambda: committed(folder) > before or process.poll() is not None)
    assert process.poll() is None, "the run ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: not marked(mark))
    assert committed(folder) > before


@pytest.mark.parametrize("num_kills", [1, pytest.param(3, marks=pytest.mark.long)])
def test_kills_lose_nothing_and_repeat_nothing_committed(tmp_path: Path, model_path: str, num_kills: int) -> None:
    wanted = write_input(tmp_path)
    for number in range(num_kills):
        kill_after_progress(tmp_path, model_path, f"{os.getpid()}-{number}")
    left = NUM_REQUESTS - committed(tmp_path)
    assert left > 0
    last = start(tmp_path, model_path, f"{os.getpid()}-last", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert last.stderr is not None
        assert any(b"engine.first_requests" in row for row in last.stderr)
        children = psutil.Process(last.pid).children(recursive=True)
        of_vllm = [child for child in children if " ".join(child.cmdline()).startswith("VLLM::")]
        assert of_vllm
        for child in of_vllm:
            child.send_signal(signal.SIGINT)
            child.send_signal(signal.SIGTERM)
        stdout, stderr = (data.decode() for data in last.communicate())
    finally:
        last.kill()
    assert last.returncode == 0, stderr[-4000:]
    assert stdout == "", "which may carry results: nothing of vLLM's is there"
    ended = re.search(r"runner\.ended .*engine_deaths=(\d+) .*succeeded=(\d+)", stderr)
    assert ended is not None, stderr[-4000:]
    assert (int(ended[1]), int(ended[2])) == (0, left)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert [row["custom_id"] for row in rows] == wanted
    assert {row["status"] for row in rows} == {"succeeded"}


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_bench_that_is_ended_leaves_no_engine_behind(number: signal.Signals, model_path: str) -> None:
    """In the midst of the second engine's start, while the first one is stopped and cannot end by itself."""
    mark = f"{os.getpid()}-{number.name}"
    process = subprocess.Popen(
        [sys.executable, str(BENCH), "--model", model_path, "--enforce-eager", "--requests", "8", "--rounds", "1"],
        env={**os.environ, MARK: mark},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_until(lambda: len(engine_processes(mark)) > 2 or process.poll() is not None)
    assert process.poll() is None
    process.send_signal(number)
    process.wait()
    wait_until(lambda: not marked(mark))
