"""Sees to it that processes do not outlive the one that started them, even if that one is killed outright.

vLLM's engine process does: it would wait for ever for requests, with the model in memory. A guard is a small
process of its own that watches its parent and, once that is gone, kills the processes it was told of. It knows
nothing of engines.
"""

import contextlib
import os
import subprocess
import sys

# How often the guard looks whether its parent is still there. It can not wait for the pipe to close: a child
# that was forked holds that open too.
LOOK_S = 0.5
END_S = 5.0

# Runs without site-packages, so that it starts in milliseconds and stays small. A pidfd stays with its process,
# where a pid may be given to another one.
_PROGRAM = """
import os, select, signal, sys
parent, look_s = int(sys.argv[1]), float(sys.argv[2])
watched, buffer = [], b""
while True:
    is_orphan = os.getppid() != parent
    if not select.select([0], [], [], 0 if is_orphan else look_s)[0]:
        if is_orphan:
            break
    else:
        data = os.read(0, 4096)
        if not data:
            break
        *lines, buffer = (buffer + data).split(b"\\n")
        for line in lines:
            try:
                watched.append(os.pidfd_open(int(line)))
            except (AttributeError, OSError):
                pass
for pidfd in watched:
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except OSError:
        pass
"""


class ProcessGuard:
    """Kills what it watches when this process ends in whatever way, and when it is closed."""

    def __init__(self) -> None:
        command = [sys.executable, "-I", "-S", "-c", _PROGRAM, str(os.getpid()), str(LOOK_S)]
        # A session of its own keeps a Ctrl-C in the terminal from ending it.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
        )
        self._watched: set[int] = set()

    def watch(self, pid: int) -> None:
        """A second time for one pid does nothing."""
        if pid in self._watched or self._process.stdin is None:
            return
        self._watched.add(pid)
        with contextlib.suppress(OSError):
            self._process.stdin.write(f"{pid}\n".encode())
            self._process.stdin.flush()

    def close(self) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
