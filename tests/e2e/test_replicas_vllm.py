"""Two replicas of real vLLM, each on half of the cores, work on one file; one of them is killed in the middle."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "leads.jsonl"
COPIES = 6  # of the example: far more work than there is until the second engine is loaded
MAX_TOKENS = 6

pytestmark = [pytest.mark.vllm, pytest.mark.long]


def write_input(folder: Path) -> list[str]:
    """The ids, in order."""
    rows = [json.loads(line) for _ in range(COPIES) for line in EXAMPLE.read_bytes().splitlines()]
    for number, row in enumerate(rows):
        row["custom_id"] = f"r{number}"
        row["params"]["max_tokens"] = MAX_TOKENS
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [row["custom_id"] for row in rows]


def children(pid: int) -> list[int]:
    """The replicas that this command has started."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            parent = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == pid and b"batchfile.local.replica" in Path(f"/proc/{name}/cmdline").read_bytes():
                found.append(int(name))
    return found


def engines_of(pids: list[int]) -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            parent = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) in pids and Path(f"/proc/{name}/cmdline").read_bytes().startswith(b"VLLM::"):
                found.append(int(name))
    return found


def is_alive(pid: int) -> bool:
    with suppress(OSError):
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return False


def test_a_file_survives_the_kill_of_one_of_two_replicas(tmp_path: Path, model_path: str) -> None:
    wanted = write_input(tmp_path)
    command = [sys.executable, "-m", "batchfile", "run", "in.jsonl", "-o", "out.jsonl", "-v", "--replicas", "2"]
    command += ["--model", model_path, "--max-model-len", "1024", "--max-num-seqs", "2"]
    log = tmp_path / "log"
    environ = {name: value for name, value in os.environ.items() if name != "VLLM_CPU_OMP_THREADS_BIND"}
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=file, stderr=file)
    try:
        while "all 2 replicas are ready" not in log.read_text():
            assert process.poll() is None, log.read_text()[-4000:]
            time.sleep(0.1)
        engines = engines_of(children(process.pid))
        killed = children(process.pid)[0]
        own = engines_of([killed])
        os.kill(killed, signal.SIGKILL)
        while any(map(is_alive, own)):  # the guard ends the engine of a replica that was killed
            time.sleep(0.1)
        assert process.wait() == 0, log.read_text()[-4000:]
    finally:
        process.kill()
        process.wait()
    said = log.read_text()
    assert re.search(r"replica \d was killed by signal 9; it is started again", said)
    assert len(engines) == 2
    assert not any(map(is_alive, engines))
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert [row["custom_id"] for row in rows] == wanted
    assert {row["status"] for row in rows} == {"succeeded"}
    binds = re.findall(r"VLLM_CPU_OMP_THREADS_BIND=(\S+)", said)
    assert len(set(binds)) == 2  # each on cores of its own
