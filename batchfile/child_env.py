"""Our own child processes: how they start, an environment without the secrets of this process, and their limits."""

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
    """A Python that is written to, and read from where `has_stdout`.

    A session of its own keeps a kill of the process group from ending it; of blocked signals a child hears nothing from
    its first moment on.
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
    """For a process that reads what strangers write. With `python -P`, which reads no module of the working directory,
    it finds this package.
    """
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {**kept, "PYTHONPATH": python_path(), **more}


def python_path() -> str:
    return os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))


def begin_child() -> int:
    """In a child that answers over its standard output: the descriptor to write to.

    What a library prints goes to standard error instead. Signals for the whole service are for the parent alone.
    """
    for number in FOR_SERVICES:
        signal.signal(number, signal.SIG_IGN)
    answers = os.dup(1)
    os.dup2(2, 1)
    return answers


def limit_memory(num_bytes: int) -> None:
    """Of this process, beyond what it has now; and no core dump. A system that knows no such limit (macOS) has none."""
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with open("/proc/self/statm", "rb") as statm:
            size = int(statm.read().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (size + num_bytes, hard))


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
