"""`kill -9` of what started the whole service on this machine: nothing of it stays behind."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
WAIT_S = 1200.0  # only against a hang: no test depends on a machine's speed


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
def test_a_killed_deployment_leaves_no_process(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "deploy/service.py",
        "--engine",
        "echo",
        "--port",
        "0",
        "--folder",
        str(tmp_path),
        "--s3",
    ]
    with (tmp_path / "said").open("wb") as said:
        service = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    seen: list[psutil.Process] = []
    try:
        until(lambda: b"Everything is up" in (tmp_path / "said").read_bytes() or service.poll() is not None)
        assert service.poll() is None, (tmp_path / "said").read_text()
        seen = psutil.Process(service.pid).children(recursive=True)
        assert len(seen) >= 4
        service.kill()
        service.wait()
        until(lambda: not any(process.is_running() for process in seen))
    finally:
        service.kill()
        for process in seen:
            if process.is_running():
                process.kill()


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.2)
