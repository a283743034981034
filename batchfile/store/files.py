"""Files and folders for the directory store: durable writes, and operating system errors as StoreErrors.

It knows no etags and no conditions.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from batchfile.errors import StoreError, StoreFull, StoreUnavailable

CHUNK_BYTES = 1024 * 1024
_RENAME_ATTEMPTS = 100  # each lost to another process that has just removed the folder

T = TypeVar("T")

sync_data: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)  # macOS has only fsync

_FULL = {
    errno.ENOSPC: "the disk is full: free some space, and the work resumes",
    errno.EDQUOT: "the disk quota is used up: free some space or raise the quota, and the work resumes",
    errno.EFBIG: "the file exceeds the size limit of one file: raise the limit (ulimit -f) and start again",
}
_WAIT = {
    errno.EIO: "input/output error: check the disk (dmesg)",
    errno.ESTALE: "the network file system lost the file: check the mount",
    errno.ETIMEDOUT: "the network file system did not answer: check the mount",
    errno.EMFILE: "too many open files: raise the limit (ulimit -n)",
    errno.ENFILE: "too many open files on this machine: close some",
}
_REFUSED = {
    errno.EACCES: "permission denied: give this user read and write access to it, or choose another directory",
    errno.EPERM: "not permitted: give this user read and write access to it, or choose another directory",
    errno.EROFS: "the file system is read-only: choose a writable directory",
    errno.ENAMETOOLONG: "the name is too long for this file system",
    errno.ENOTDIR: "there is a file where a folder is needed: remove or rename it",
    errno.EEXIST: "there is a file where a folder is needed: remove or rename it",
    errno.EISDIR: "there is a folder where an object should be: remove or rename it",
    errno.ENOTEMPTY: "there is a folder where an object should be: remove or rename it",
    errno.ENOLCK: "the file system does not support locks: choose a local directory",
    errno.ENOTSUP: "the file system does not support locks or links: choose a local directory",
    errno.ENOENT: "the store's directory is missing or cannot be created: restore it, or choose another",
}
_NOTHING = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}  # the file does not exist, or a link is in its place


@contextmanager
def translated(path: str) -> Iterator[None]:
    """The only place where errors of the operating system become StoreErrors."""
    try:
        yield
    except OSError as error:
        code = error.errno or 0
        if code in _FULL:
            raise StoreFull(f"{path}: {_FULL[code]}") from error
        if code in _WAIT:
            raise StoreUnavailable(f"{path}: {_WAIT[code]}") from error
        raise StoreError(f"{path}: {_REFUSED.get(code) or error.strerror or error}") from error


def open_file(root: str, key: str, *, follow: bool) -> int | None:
    """A descriptor for reading, or None if there is not a regular file. Never waits for the writer of a pipe.

    Not `follow`: for a path that others write, where a link anywhere in it counts as missing.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    fd = _found(root, key, follow, lambda name, folder_fd: os.open(name, flags, dir_fd=folder_fd))
    if fd is None or stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None


def stat_file(root: str, key: str, *, follow: bool) -> os.stat_result | None:
    """The status of a regular file, or None if there is not one. `follow`: as `open_file`."""
    found = _found(root, key, follow, lambda name, fd: os.stat(name, dir_fd=fd, follow_symlinks=follow))
    return found if found is not None and stat.S_ISREG(found.st_mode) else None


def _found(root: str, key: str, follow: bool, do: Callable[[str, int | None], T]) -> T | None:
    """Call `do` with a name and its folder, which is opened segment by segment if links must not be followed.

    None if the name does not exist.
    """
    fd: int | None = None
    try:
        if follow:
            return do(os.path.join(root, key), None)
        *folders, name = key.split("/")
        for segment in [root, *folders]:
            above, fd = fd, None
            try:
                flags = os.O_RDONLY | os.O_DIRECTORY | (0 if above is None else os.O_NOFOLLOW)
                fd = os.open(segment, flags, dir_fd=above)
            finally:
                if above is not None:
                    os.close(above)
        return do(name, fd)
    except OSError as error:
        if error.errno in _NOTHING:
            return None
        raise
    finally:
        if fd is not None:
            os.close(fd)


def read_all(fd: int) -> bytes:
    chunks = [os.read(fd, os.fstat(fd).st_size + 1)]
    while chunks[-1]:
        chunks.append(os.read(fd, CHUNK_BYTES))
    return chunks[0] if len(chunks) <= 2 else b"".join(chunks)


def sync_folder(folder: str) -> None:
    """Make the names in a folder durable. A missing folder has none."""
    with suppress(FileNotFoundError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def make_folders(folder: str, *, fsync: bool) -> None:
    """Create the folder and its missing parents; each name is made durable in its parent."""
    missing = []
    while not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    for made in reversed(missing):
        with suppress(FileExistsError):
            os.mkdir(made)
        if fsync:
            sync_folder(os.path.dirname(made))


def rename(temporary: str, path: str, *, fsync: bool) -> None:
    """Give a finished file its name, in a folder that is created if it is missing.

    Another process may remove the folder as empty in the meantime; then it is created again. An existing folder may not
    be durable in its parent yet if another process is creating it. File systems write such changes in order, so it is
    durable once a name in it is.
    """
    for _ in range(_RENAME_ATTEMPTS):
        with suppress(FileNotFoundError):
            make_folders(os.path.dirname(path), fsync=fsync)
            os.rename(temporary, path)
            return
        if not os.path.lexists(temporary):
            break
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


def remove_empty_folders(folder: str, root: str) -> None:
    """Remove the folder and its parents below `root`, as far as they are empty."""
    while len(folder) > len(root):
        try:
            os.rmdir(folder)
        except OSError:  # not empty, or a mount point: it stays
            return
        folder = os.path.dirname(folder)
