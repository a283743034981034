"""One set-up at a time in one folder. The operating system releases the lock when the last process that has it ends."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from .errors import SetupError
from .progress import say


@contextlib.contextmanager
def locked(folder: Path, what: str) -> Iterator[int]:
    """Hold the lock of `folder`, waiting for another set-up. Yields the descriptor, for child processes to inherit:

    a pip whose set-up was killed has the lock until it ends, so that the next set-up does not run into it.
    """
    import fcntl  # not on Windows, where set-up ends before this with a message

    path = folder / ".setup.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise SetupError(
            f"{folder} cannot be written to ({error.strerror}). Make it writable for this user"
            + (", or set BATCHFILE_CACHE to a folder that is." if what == "models" else ".")
        ) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"Another set-up is at work in {folder}; waiting for it ...")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)
