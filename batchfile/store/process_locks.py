"""Who lives, told by file locks: the operating system drops a lock with its process, however that ends.

One file per owner, named by a hash. Knows no leases and no records.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from batchfile.errors import StoreError
from batchfile.store.files import close_in_children, is_locked, remove_unlocked, translated, unlock

FORGET_AFTER_S = 7 * 24 * 3600.0  # a dead owner's file is removed; its leases have lapsed long before
_HOLD_ATTEMPTS = 50
_HOLD_PAUSE_S = 0.02


@contextmanager
def hold_process_lock(folder: str, owner: str) -> Iterator[None]:
    """While entered, `owner` lives. Raises: StoreError where another living process has this name."""
    path = _path(folder, owner)
    with translated(path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        os.utime(path)
    close_in_children(fd)
    try:
        _lock(fd, owner)
        yield
    finally:
        unlock(fd)


def is_process_dead(folder: str, owner: str) -> bool:
    """True where `owner` once held its file and no living process does now."""
    return is_locked(_path(folder, owner)) is False


def forget_old(folder: str, now: float) -> None:
    """Remove the files of owners long dead. A missing file only means: not known, wait for the lease to lapse."""
    remove_unlocked(folder, older_than=now - FORGET_AFTER_S)


def _lock(fd: int, owner: str) -> None:
    # Whoever asks `is_process_dead` holds a shared lock for a moment, so one refusal says nothing yet.
    for _ in range(_HOLD_ATTEMPTS):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_HOLD_PAUSE_S)
        else:
            return
    raise StoreError(f"{owner} is the name of another living process: give each runner a name of its own")


def _path(folder: str, owner: str) -> str:
    return os.path.join(folder, hashlib.sha256(owner.encode()).hexdigest()[:32])
