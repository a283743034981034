"""Files and folders for the directory store: durable writes, locks, and the operating system's errors in ours.

Knows no keys, no etags and no conditions.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from batchfile.errors import StoreError, StoreFull, StoreUnavailable

CHUNK_BYTES = 1024 * 1024
_RENAME_ATTEMPTS = 100  # each lost to another process that has just removed the folder
_sync_data = getattr(os, "fdatasync", os.fsync)  # macOS has only fsync

_FULL = {
    errno.ENOSPC: "the disk is full: free some space, then the work goes on",
    errno.EDQUOT: "the disk quota is used up: free some space or raise it, then the work goes on",
    errno.EFBIG: "the file grew past the limit for one file: raise the limit (ulimit -f) and start again",
}
_WAIT = {
    errno.EIO: "the disk did not answer: check it (dmesg)",
    errno.ESTALE: "the network file system lost the file: check the mount",
    errno.ETIMEDOUT: "the network file system did not answer: check the mount",
    errno.EMFILE: "too many open files: raise the limit (ulimit -n)",
    errno.ENFILE: "too many open files on this machine: close some",
}
_REFUSED = {
    errno.EACCES: "permission denied: give this user read and write access to it, or choose another directory",
    errno.EPERM: "not permitted: give this user read and write access to it, or choose another directory",
    errno.EROFS: "the file system is read-only: choose a directory that can be written",
    errno.ENAMETOOLONG: "the name is too long for this file system",
    errno.ENOTDIR: "a file stands where a folder is needed: remove or rename it",
    errno.EEXIST: "a file stands where a folder is needed: remove or rename it",
    errno.EISDIR: "a folder stands where an object should be: remove or rename it",
    errno.ENOTEMPTY: "a folder stands where an object should be: remove or rename it",
    errno.ENOLCK: "the file system has no locks: choose a local directory",
    errno.ENOTSUP: "the file system has no locks or links: choose a local directory",
    errno.ENOENT: "the store's directory is gone, or can not be made there: restore it or choose another",
}


_NOTHING = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}  # there is no such file, or a link in its place


@contextmanager
def translated(path: str) -> Iterator[None]:
    """The one place where errors of the operating system become ours."""
    try:
        yield
    except OSError as error:
        code = error.errno or 0
        if code in _FULL:
            raise StoreFull(f"{path}: {_FULL[code]}") from error
        if code in _WAIT:
            raise StoreUnavailable(f"{path}: {_WAIT[code]}") from error
        raise StoreError(f"{path}: {_REFUSED.get(code) or error.strerror or error}") from error


def is_file(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode)


def open_file(path: str) -> int | None:
    """A descriptor for reading, or None where there is no regular file. Never waits for the writer of a pipe."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if is_file(os.fstat(fd)):
        return fd
    os.close(fd)
    return None


def stat_file(path: str) -> os.stat_result | None:
    """What a regular file (or a link to one) is like, or None where there is none."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found if is_file(found) else None


def open_file_below(root: str, key: str) -> int | None:
    """As `open_file`, of a path that others write: a link anywhere in it is nothing."""
    folder_fd = _folder_below(root, key)
    if folder_fd is None:
        return None
    try:
        fd = os.open(os.path.basename(key), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=folder_fd)
    except OSError as error:
        if error.errno in _NOTHING:
            return None
        raise
    finally:
        os.close(folder_fd)
    if is_file(os.fstat(fd)):
        return fd
    os.close(fd)
    return None


def stat_file_below(root: str, key: str) -> os.stat_result | None:
    """As `stat_file`, of a path that others write: a link anywhere in it is nothing."""
    folder_fd = _folder_below(root, key)
    if folder_fd is None:
        return None
    try:
        found = os.stat(os.path.basename(key), dir_fd=folder_fd, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NOTHING:
            return None
        raise
    finally:
        os.close(folder_fd)
    return found if is_file(found) else None


def _folder_below(root: str, key: str) -> int | None:
    """The folder of `key`, opened segment by segment without following a link; None where there is none."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for segment in key.split("/")[:-1]:
        try:
            below = os.open(segment, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
        except OSError as error:
            if error.errno in _NOTHING:
                return None
            raise
        finally:
            os.close(fd)
        fd = below
    return fd


def read_all(fd: int) -> bytes:
    chunks = [os.read(fd, os.fstat(fd).st_size + 1)]
    while chunks[-1]:
        chunks.append(os.read(fd, CHUNK_BYTES))
    return chunks[0] if len(chunks) <= 2 else b"".join(chunks)


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync_data(fd: int) -> None:
    _sync_data(fd)


def sync_folder(folder: str) -> None:
    """Make the names in a folder durable. A folder that is gone has none."""
    with suppress(FileNotFoundError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def make_folders(folder: str, *, fsync: bool) -> None:
    """The folder and those above it that are missing, each name made durable in the one above."""
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
    """Give a finished file its name, in a folder that is made where it is missing.

    Another process may remove a folder as empty in the meantime; then it is made again. A folder that is there may not
    be durable in the one above yet, where another process is making it: file systems write such changes in order, so
    it is once a name in it is.
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
    """The folder and those above it, below `root`, as far as nothing is in them."""
    while len(folder) > len(root):
        try:
            os.rmdir(folder)
        except OSError:  # not empty, or somebody's mount point: it stays
            return
        folder = os.path.dirname(folder)


_locked: set[int] = set()


def _let_go_in_child() -> None:
    """A forked child shares its parent's locks and would keep those of a dead parent: it closes its copies."""
    for fd in _locked:
        with suppress(OSError):
            os.close(fd)
    _locked.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


def close_in_children(fd: int) -> None:
    """Until `unlock`, a forked child closes its copy of this file."""
    _locked.add(fd)


def unlock(fd: int) -> None:
    """Let go of the lock and close the file; nothing in a child that was forked in the meantime.

    Only closed, it would stay locked for as long as another copy of the descriptor is open.
    """
    if fd not in _locked:
        return
    _locked.discard(fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


def is_locked(path: str) -> bool | None:
    """Does anybody hold a lock on the file? None where it is not there."""
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
    """Remove the files that nobody holds and that were last written before `older_than`, and links as old."""
    with os.scandir(folder) as found:
        for entry in found:
            with suppress(OSError):
                is_old = entry.stat(follow_symlinks=False).st_mtime < older_than
                if is_old and (entry.is_symlink() or is_locked(entry.path) is False):
                    os.unlink(entry.path)
