"""Which processes an engine started and how they ended: real processes, without vLLM."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from batchfile.engine.vllm.processes import children, close_sockets, descendants, ended


def started(target: object, *arguments: object) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)  # type: ignore[arg-type]
    process.start()
    return process


def test_what_this_process_starts_is_known_and_whether_it_lives() -> None:
    before = children()
    process = started(time.sleep, 3600)
    assert children() - before == {process}
    assert ended([process]) is None
    assert [one.pid for one in descendants([process])] == [process.pid]
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert children() == before
    assert ended([process]) == "was killed by signal 9, as the system does when memory runs out"
    assert descendants([process]) == []


@pytest.mark.parametrize(
    ("target", "argument", "words"),
    [(sys.exit, 3, "ended with exit code 3"), (signal.raise_signal, signal.SIGTERM, "was killed by signal 15")],
)
def test_how_a_process_ended_is_said(target: object, argument: object, words: str) -> None:
    process = started(target, argument)
    process.join()
    assert ended([process]) == words


def test_a_client_without_sockets_is_closed_too() -> None:
    close_sockets(SimpleNamespace())


def test_a_program_without_a_guard_of_its_main_is_not_run_again_in_the_processes_of_an_engine(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import multiprocessing\n"
        "from batchfile.engine.vllm.processes import without_main\n"
        "print('the program', flush=True)\n"
        "process = multiprocessing.get_context('spawn').Process(target=print, args=('a process',))\n"
        "with without_main():\n"
        "    process.start()\n"
        "process.join()\n"
    )
    ran = subprocess.run([sys.executable, program], capture_output=True, text=True, check=True)
    assert ran.stdout == "the program\na process\n", ran.stderr
