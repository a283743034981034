"""A child process that answers framed requests over its pipes, and the owners whose requests were slow.

A frame is the number of its parts, their sizes, and the parts.
"""

import os
import select
import signal
import struct
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping

from batchfile.child_env import start_child, write_all

ANSWER_TICK_S = 0.25
SLOW_MAX = 3  # of one owner within SLOW_WINDOW_S: its next schemas get less time
SLOW_WINDOW_S = 600.0
OWNERS_KEPT = 1024  # the owners that most recently had slow schemas


class Child:
    """Runs `python -m module arguments`. One thread asks at a time; any thread may kill it."""

    def __init__(self, module: str, *arguments: str, env: Mapping[str, str]) -> None:
        self._process = start_child("-P", "-m", module, *arguments, env=env)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """None while it runs. Negative: the number of the signal that killed it."""
        return self._process.poll()

    def ask(self, *parts: bytes, timeout_s: float) -> list[bytes]:
        """Raises: OSError, EOFError, TimeoutError."""
        assert self._process.stdin is not None
        write(self._process.stdin.fileno(), *parts)
        return self.answer(timeout_s)

    def answer(self, timeout_s: float) -> list[bytes]:
        """The next frame. Counts ticks, so that time in which this process is stopped does not count.

        Raises: OSError, EOFError, TimeoutError.
        """
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        readable = select.poll()  # unlike select, it supports descriptors above 1,023
        readable.register(fd, select.POLLIN)
        for _ in range(int(timeout_s / ANSWER_TICK_S) + 1):
            if readable.poll(ANSWER_TICK_S * 1000):
                return read(fd)
        raise TimeoutError(f"no answer within {timeout_s:g} s")

    def kill(self) -> None:
        """Kill the process and its forks, which are a process group. The exit status of an ended one is kept."""
        if self._process.returncode is None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except OSError:
                self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """As `kill`, and close the pipes. Only for the thread that asks."""
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def write(fd: int, *parts: bytes) -> None:
    """Write a frame."""
    write_all(fd, b"".join([struct.pack(f"<I{len(parts)}Q", len(parts), *map(len, parts)), *parts]))


def read(fd: int) -> list[bytes]:
    """The parts of the next frame. Raises: EOFError."""
    (num,) = struct.unpack("<I", _exactly(fd, 4))
    sizes = struct.unpack(f"<{num}Q", _exactly(fd, 8 * num))
    return [_exactly(fd, size) for size in sizes]


def _exactly(fd: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = os.read(fd, min(size - len(data), 1 << 20))
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)


class SlowOwners:
    """Remembers which owners had slow schemas recently. Thread-safe."""

    def __init__(self) -> None:
        self._slow_at: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def is_hurried(self, owner: str) -> bool:
        with self._lock:
            slow_at = self._slow_at.get(owner, deque())
            return len(slow_at) == SLOW_MAX and time.monotonic() - slow_at[0] < SLOW_WINDOW_S

    def note(self, owner: str) -> None:
        with self._lock:
            self._slow_at.setdefault(owner, deque(maxlen=SLOW_MAX)).append(time.monotonic())
            self._slow_at.move_to_end(owner)
            while len(self._slow_at) > OWNERS_KEPT:
                self._slow_at.popitem(last=False)
