"""File locks of a directory store. The operating system releases a lock when its process ends, however it ends.

Key locks: a fixed set of files, one chosen by the hash of a key, never deleted. A stopped process (Ctrl-Z, `docker
pause`) keeps its lock, and no other takes it over, because the process could still write when it resumes. A process
that waits for it gives up after `WAIT_S`. The holder writes its identity into the file, only for messages.

Process locks: one file per process, named by a hash, which shows whether the process is alive.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from random import uniform

from batchfile.errors import StoreError, StoreUnavailable
from batchfile.store.files import translated

NUM_LOCKS = 64
WAIT_S = 10.0  # for one holder, counted from when any thread of this process first saw it; a sync may take seconds
WAIT_LEAST_S = 0.1  # also for a holder that was seen before: it may be a new one that has not written its identity yet
BUSY_WAIT_S = 60.0  # for many holders, one after another
_POLL_S_MIN = 0.0005
_POLL_S_MAX = 0.02
_HOLDER_BYTES = 160  # a pid, a host's name and a time
_NOBODY = b" " * _HOLDER_BYTES
FORGET_AFTER_S = 7 * 24 * 3600.0  # the lock file of a dead process is removed; its leases have expired long before
_HOLD_ATTEMPTS = 50
_HOLD_PAUSE_S = 0.02

_locked: set[int] = set()  # descriptors of lock files


def _let_go_in_child() -> None:
    """A forked child shares its parent's locks and would keep those of a dead parent, so it closes its copies."""
    for fd in _locked:
        with suppress(OSError):
            os.close(fd)
    _locked.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


def close_in_children(fd: int) -> None:
    """Until `unlock`, a forked child closes its copy of this file."""
    _locked.add(fd)


def unlock(fd: int) -> None:
    """Release the lock and close the file; does nothing in a child that was forked in the meantime.

    If only closed, it would stay locked while another copy of the descriptor is open.
    """
    if fd not in _locked:
        return
    _locked.discard(fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


def is_locked(path: str) -> bool | None:
    """Does any process hold a lock on the file? None if the file does not exist."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    close_in_children(fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        unlock(fd)
    return False


def remove_unlocked(folder: str, *, older_than: float) -> None:
    """Remove the files that are not locked and were last written before `older_than`, and links of that age."""
    with os.scandir(folder) as found:
        for entry in found:
            with suppress(OSError):
                is_old = entry.stat(follow_symlinks=False).st_mtime < older_than
                if is_old and (entry.is_symlink() or is_locked(entry.path) is False):
                    os.unlink(entry.path)


class KeyLocks:
    """`check` and `held` share what they have seen of holders, so a process waits only once for a stopped one."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._seen: dict[str, tuple[bytes, float]] = {}  # path -> its holder, and since when (monotonic)

    def make(self) -> None:
        """Call this first. Lock files are created only here: two files of one name would be two locks."""
        for n in range(NUM_LOCKS):
            os.close(os.open(self._path(n), os.O_RDWR | os.O_CREAT, 0o644))

    @contextmanager
    def held(self, key: str) -> Iterator[None]:
        """Holds the lock of `key` among threads and processes. Raises: StoreUnavailable after a bounded wait."""
        path = self._path(hashlib.sha256(key.encode()).digest()[0] % NUM_LOCKS)
        fd = os.open(path, os.O_RDWR)  # a new descriptor each time, so that threads exclude each other too
        close_in_children(fd)
        try:
            self._wait(fd, path)
            os.pwrite(fd, _this_process(), 0)
            try:
                yield
            finally:
                with suppress(OSError):
                    os.pwrite(fd, _NOBODY, 0)
        finally:
            unlock(fd)

    def check(self) -> None:
        """Raises: StoreUnavailable if a lock has had the same holder for `WAIT_S`. Does not wait.

        Call it repeatedly: it learns from its looks how long a holder has had its lock.
        """
        for n in range(NUM_LOCKS):
            path = self._path(n)
            fd = os.open(path, os.O_RDONLY)
            close_in_children(fd)
            try:
                if not _holder(fd).strip() and path not in self._seen:
                    continue
                if _try(fd, fcntl.LOCK_SH):
                    self._seen.pop(path, None)
                elif (held_s := self._look(fd, path)) >= WAIT_S:
                    raise StoreUnavailable(self._stuck(fd, held_s))
            finally:
                unlock(fd)

    def _wait(self, fd: int, path: str) -> None:
        started_at, pause_s = time.monotonic(), _POLL_S_MIN
        while not _try(fd, fcntl.LOCK_EX):
            held_s, waited_s = self._look(fd, path), time.monotonic() - started_at
            if held_s >= WAIT_S and waited_s >= WAIT_LEAST_S:
                raise StoreUnavailable(self._stuck(fd, held_s))
            if waited_s >= BUSY_WAIT_S:
                raise StoreUnavailable(f"{self._folder}: waited {waited_s:.0f} s for a lock; the disk is too slow")
            time.sleep(pause_s * uniform(0.5, 1.0))
            pause_s = min(pause_s * 2, _POLL_S_MAX)
        self._seen.pop(path, None)

    def _look(self, fd: int, path: str) -> float:
        """For how many seconds the same holder has been seen with the lock."""
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


class ProcessLocks:
    """Knows no leases and no records."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    @contextmanager
    def hold(self, process: str) -> Iterator[None]:
        """While entered, `process` is alive. Raises: StoreError if another live process has this name."""
        path = self._path(process)
        with translated(path):
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            os.utime(path)
        close_in_children(fd)
        try:
            # `is_dead` of another process holds a shared lock for a moment, so one failure says nothing yet.
            for _ in range(_HOLD_ATTEMPTS):
                if _try(fd, fcntl.LOCK_EX):
                    break
                time.sleep(_HOLD_PAUSE_S)
            else:
                raise StoreError(f"{process} is the name of another running process; give each runner a different name")
            yield
        finally:
            unlock(fd)

    def is_dead(self, process: str) -> bool:
        """True if `process` once held its lock and no live process does now."""
        return is_locked(self._path(process)) is False

    def forget_old(self, now: float) -> None:
        """Remove the locks of processes long dead. Without one, the state is unknown until the lease expires."""
        remove_unlocked(self._folder, older_than=now - FORGET_AFTER_S)

    def _path(self, process: str) -> str:
        return os.path.join(self._folder, hashlib.sha256(process.encode()).hexdigest()[:32])


def _try(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _this_process() -> bytes:
    """Different each time, to see that a lock has changed hands."""
    return f"{os.getpid()} {os.uname().nodename} {time.time_ns()}".encode()[:_HOLDER_BYTES].ljust(_HOLDER_BYTES)


def _holder(fd: int) -> bytes:
    return os.pread(fd, _HOLDER_BYTES, 0)


def _is_stopped(pid: str) -> bool:
    """By a signal. Always False without /proc."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] in {b"T", b"t"}
    except OSError:
        return False
