"""The folders of set-up, its lock, and its error."""

import contextlib
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from .progress import say

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = ROOT / "constraints.txt"
CONSTRAINTS_CPU = ROOT / "constraints-cpu.txt"


class SetupError(Exception):
    """Set-up cannot continue. The message says what happened and what to do."""


def environment_dir() -> Path:
    """The virtual environment of this Python."""
    return Path(sys.prefix)


def packages_dir() -> Path:
    return Path(sysconfig.get_path("purelib"))


def scratch_dir() -> Path:
    """The folder of pip's temporary files, on the same disk as the environment, where free space is checked."""
    return environment_dir() / ".setup-tmp"


def models_dir() -> Path:
    cache = os.environ.get("BATCHFILE_CACHE") or "~/.cache/batchfile"
    return Path(cache).expanduser() / "models"


@contextlib.contextmanager
def locked(folder: Path, what: str) -> Iterator[int]:
    """Hold the lock of `folder`, waiting for another set-up. Yields the descriptor for child processes to inherit.

    A pip whose set-up was killed then keeps the lock until it ends, so that the next set-up does not interfere.
    """
    import fcntl  # not available on Windows, where set-up stops earlier

    path = folder / ".setup.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise SetupError(
            f"Cannot write to {folder} ({error.strerror}). Make it writable for this user"
            + (", or set BATCHFILE_CACHE to a folder that is." if what == "models" else ".")
        ) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"Another set-up is running in {folder}; waiting for it ...")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)
