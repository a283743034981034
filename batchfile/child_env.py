"""Starts child processes with memory limits and an environment without the secrets of this process."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

ROOT = str(Path(__file__).parents[1])  # where this package is imported from
_KEPT = ("PATH", "HOME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "PYTHONHOME")
# Signals that are meant for a whole service (Ctrl-C, systemd's SIGTERM): a child's parent may have work to finish.
FOR_SERVICES = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


def start_child(
    *arguments: str, env: Mapping[str, str] | None = None, has_stdout: bool = True
) -> "subprocess.Popen[bytes]":
    """Start Python with a pipe to its stdin, and one from its stdout if `has_stdout`.

    It gets its own session, so that a signal to the process group does not reach it, and starts with the signals of
    `FOR_SERVICES` blocked.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_SERVICES)
    try:
        return subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if has_stdout else subprocess.DEVNULL,
            env=env,
            start_new_session=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def child_environment(**more: str) -> dict[str, str]:
    """The environment of a process that reads untrusted input. It finds this package under `python -P` too, which
    ignores the working directory.
    """
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {**kept, "PYTHONPATH": python_path(), **more}


def python_path() -> str:
    return os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))


def begin_child() -> int:
    """Prepare a child that answers over its stdout: returns the descriptor to write to.

    Anything that a library prints goes to stderr instead. Signals for the whole service are left to the parent.
    """
    for number in FOR_SERVICES:
        signal.signal(number, signal.SIG_IGN)
    answers = os.dup(1)
    os.dup2(2, 1)
    return answers


def limit_memory(num_bytes: int) -> None:
    """Limit the memory of this process to what it has now plus `num_bytes`, and disable core dumps.

    Does nothing on systems without such a limit (macOS).
    """
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with open("/proc/self/statm", "rb") as statm:
            size = int(statm.read().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (size + num_bytes, hard))


def write_all(fd: int, data: bytes) -> None:
    """To a pipe or a file; one `os.write` may write less."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
