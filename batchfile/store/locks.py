"""Locks of a directory store: a fixed set of files, one chosen by the hash of a key, never deleted.

The operating system drops a lock with its process. One of a process that is stopped (Ctrl-Z, `docker pause`) stays with
it and is never taken over, so that its waking up does no harm: who waits for it gives up after `WAIT_S`. The holder
writes who it is into the file; that is for messages only, and decides nothing.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from random import uniform

from batchfile.errors import StoreUnavailable
from batchfile.store import files

NUM_LOCKS = 64
WAIT_S = 10.0  # for one holder, whoever of this process has seen it first; a sync on a busy disk may take seconds
WAIT_LEAST_S = 0.1  # also for a holder that has been seen for longer: it may be a new one that has not said so yet
BUSY_WAIT_S = 60.0  # for many holders, one after another
_POLL_S_MIN = 0.0005
_POLL_S_MAX = 0.02
_HOLDER_BYTES = 160  # a pid, a host's name and a time
_NOBODY = b" " * _HOLDER_BYTES


class Locks:
    """`check` and `held` share what they have seen of holders, so a process waits once for each that is stopped."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._seen: dict[str, tuple[bytes, float]] = {}  # path -> its holder, and since when (monotonic)

    def make(self) -> None:
        """Before anything else. Only here are lock files made: two files of one name would be two locks."""
        for n in range(NUM_LOCKS):
            os.close(os.open(self._path(n), os.O_RDWR | os.O_CREAT, 0o644))

    @contextmanager
    def held(self, key: str) -> Iterator[None]:
        """Alone with the lock of `key`, among threads and processes. Raises: StoreUnavailable after a bounded wait."""
        path = self._path(hashlib.sha256(key.encode()).digest()[0] % NUM_LOCKS)
        fd = os.open(path, os.O_RDWR)  # each time one of its own, so that threads exclude each other too
        files.close_in_children(fd)
        try:
            self._wait(fd, path)
            os.pwrite(fd, _this_process(), 0)
            try:
                yield
            finally:
                with suppress(OSError):
                    os.pwrite(fd, _NOBODY, 0)
        finally:
            files.unlock(fd)

    def check(self) -> None:
        """Raises: StoreUnavailable where a lock has had the same holder for `WAIT_S`. Waits for nothing.

        To be called again and again: it learns by looking how long a holder has had its lock.
        """
        for n in range(NUM_LOCKS):
            path = self._path(n)
            fd = os.open(path, os.O_RDONLY)
            files.close_in_children(fd)
            try:
                if not _holder(fd).strip() and path not in self._seen:
                    continue
                if _try(fd, fcntl.LOCK_SH):
                    self._seen.pop(path, None)
                elif (held_s := self._look(fd, path)) >= WAIT_S:
                    raise StoreUnavailable(self._stuck(fd, held_s))
            finally:
                files.unlock(fd)

    def _wait(self, fd: int, path: str) -> None:
        started_at, pause_s = time.monotonic(), _POLL_S_MIN
        while not _try(fd, fcntl.LOCK_EX):
            held_s, waited_s = self._look(fd, path), time.monotonic() - started_at
            if held_s >= WAIT_S and waited_s >= WAIT_LEAST_S:
                raise StoreUnavailable(self._stuck(fd, held_s))
            if waited_s >= BUSY_WAIT_S:
                raise StoreUnavailable(
                    f"{self._folder}: a lock was not free for {waited_s:.0f} s: the disk is too slow"
                )
            time.sleep(pause_s * uniform(0.5, 1.0))
            pause_s = min(pause_s * 2, _POLL_S_MAX)
        self._seen.pop(path, None)

    def _look(self, fd: int, path: str) -> float:
        """For how many seconds the same holder has been seen at a lock that is held."""
        holder, now = _holder(fd), time.monotonic()
        known, since = self._seen.get(path, (b"", now))
        if known != holder:
            since = now
        self._seen[path] = (holder, since)
        return now - since

    def _stuck(self, fd: int, held_s: float) -> str:
        pid, _, host = _holder(fd).decode(errors="replace").strip().rpartition(" ")[0].partition(" ")
        who = f"process {pid} on {host}" if pid else "a process"
        state = " and is stopped" if host == os.uname().nodename and _is_stopped(pid) else ""
        advice = f"resume it (kill -CONT {pid}) or end it (kill -KILL {pid})" if pid else "resume or end it"
        return f"{self._folder}: {who} has held a lock for {held_s:.0f} s{state}: {advice}"

    def _path(self, n: int) -> str:
        return os.path.join(self._folder, f"{n:02d}")


def _try(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _this_process() -> bytes:
    """Different each time, so that a lock that changes hands is told from one that does not."""
    return f"{os.getpid()} {os.uname().nodename} {time.time_ns()}".encode()[:_HOLDER_BYTES].ljust(_HOLDER_BYTES)


def _holder(fd: int) -> bytes:
    return os.pread(fd, _HOLDER_BYTES, 0)


def _is_stopped(pid: str) -> bool:
    """By a signal. Always False where there is no /proc."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] in {b"T", b"t"}
    except OSError:
        return False
