"""Ctrl-C during `batchfile run` on real vLLM: while the model loads, and twice while it generates."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.vllm

WAIT_S = 3600  # only against a hang


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = [
        {"custom_id": f"r{n}", "params": {"messages": [{"role": "user", "content": f"Count on from {n}."}]}}
        for n in range(200)
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def start(folder: Path, model_dir: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "batchfile", "run", "in.jsonl", "-o", "out.jsonl", "-v", "--model", str(model_dir)]
    more = ["--max-model-len", "1024", "--max-num-seqs", "8", "--max-tokens", "900"]
    return subprocess.Popen([*command, *more], cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=True)


def engines(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """What it started, but for the small processes that watch over these."""
    found = psutil.Process(process.pid).children(recursive=True)
    return [child for child in found if child.is_running() and child.memory_info().rss > 100 * 2**20]


def interrupt(process: subprocess.Popen[str], children: list[psutil.Process], num: int) -> str:
    """Send Ctrl-C to all of them, as a terminal does; what was said until the end, by when all of them are gone."""
    for _ in range(num):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.5)
    _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130, said[-4000:]
    assert "interrupted; to resume" in said
    assert "Traceback" not in said, said[-4000:]
    gone, alive = psutil.wait_procs(children, timeout=60)
    assert (len(gone), alive) == (len(children), [])
    return said


def test_one_signal_ends_a_run_whose_model_loads_and_leaves_no_engine(folder: Path, model_dir: Path) -> None:
    process = start(folder, model_dir)
    try:
        deadline = time.monotonic() + WAIT_S
        while not (children := engines(process)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert children
        said = interrupt(process, children, 1)
        assert "engine.ready" not in said
    finally:
        process.kill()


def test_two_signals_end_a_run_that_generates_and_leave_no_engine(folder: Path, model_dir: Path) -> None:
    process = start(folder, model_dir)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "engine.first_requests" in line:
                break
        time.sleep(2)
        children = engines(process)
        assert children
        said = interrupt(process, children, 2)
        assert "stopping: finishing 24 requests" in said
        assert "stopping now" in said
    finally:
        process.kill()
