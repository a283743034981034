"""One process per output, whatever store each uses: a lock on a hidden file next to the output, removed at the end.

Not in a shared temporary folder, where others could take its name first, and not in the store: two runs with two
stores may write to one output.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256

from batchfile.errors import OutputTaken, SettingsError
from batchfile.store.locks import close_in_children, is_locked, unlock

_ATTEMPTS = 10  # each lost to a process that ended and removed its lock in between, or to one that looked at it
_NAME_BYTES_MAX = 255  # of a file in most file systems
_PAUSE_S = 0.01  # before the next: `is_being_written` holds a lock for less


@contextmanager
def lock_output(output: str | None) -> Iterator[None]:
    """`output`: its absolute path, None: stdout. Raises: OutputTaken where another process has it; SettingsError."""
    if output is None:
        yield
        return
    path = lock_path(output)
    fd = _lock(path, output)
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(path)  # still locked: nobody can have the file and miss that it is gone
        unlock(fd)


def lock_path(output: str) -> str:
    folder, name = os.path.split(output)
    if len(os.fsencode(name)) > _NAME_BYTES_MAX - len("..lock"):
        name = sha256(os.fsencode(name)).hexdigest()
    return os.path.join(folder, f".{name}.lock")


def is_being_written(output: str) -> bool:
    """Does a process of this machine run this output now, or write its files?"""
    return is_locked(lock_path(output)) is True


def _lock(path: str, output: str) -> int:
    for _ in range(_ATTEMPTS):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise SettingsError(f"{output}: its lock {path} cannot be opened: {error.strerror}; remove it") from error
        close_in_children(fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            unlock(fd)
            if not isinstance(error, BlockingIOError):
                raise SettingsError(f"{output}: its folder has no file locks: {error.strerror}") from error
            time.sleep(_PAUSE_S)
            continue
        if _is_still_there(fd, path):
            return fd
        unlock(fd)
    raise _taken(output)


def _is_still_there(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _taken(output: str) -> OutputTaken:
    return OutputTaken(
        f"another batchfile process is writing {output} right now; wait for it, or choose another output"
    )
