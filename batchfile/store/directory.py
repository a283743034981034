"""A directory as a store: the embedded default. Several processes may use it at once, on one machine.

An object is a file; a write is a temporary file and an atomic rename, synced to disk before it is acknowledged. Conditions
hold under one file lock. Etags are a hash of the content for `.json` documents and (inode, size, mtime) for all else.
"""

import errno
import fcntl
import hashlib
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from batchfile.errors import ObjectChanged, ObjectMissing, PreconditionFailed, StoreError, StoreUnavailable
from batchfile.store.base import Entry, Object, Unchanged

CHUNK_BYTES = 1024 * 1024
_HIDDEN = ".store"  # locks and unfinished writes; no key may begin with it
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


class DirectoryStore:
    """`fsync` False is for tests: a power cut may then undo what was acknowledged; a killed process may not."""

    def __init__(self, path: str | os.PathLike[str], *, fsync: bool = True) -> None:
        self._root = os.path.abspath(path)
        self._fsync = fsync
        self._hidden = os.path.join(self._root, _HIDDEN)
        self._lock = threading.Lock()
        self._made: set[str] = set()
        with _translated(self._root):
            os.makedirs(os.path.join(self._hidden, "tmp"), exist_ok=True)
            os.makedirs(os.path.join(self._hidden, "owners"), exist_ok=True)
            self._lock_fd = os.open(os.path.join(self._hidden, "lock"), os.O_RDWR | os.O_CREAT, 0o644)

    @property
    def url(self) -> str:
        return self._root

    def get(self, key: str) -> Object | None:
        path = self._path(key)
        with _translated(key):
            try:
                with open(path, "rb", buffering=0) as file:
                    stat = os.fstat(file.fileno())
                    data = _read_all(file.fileno(), stat.st_size)
            except (FileNotFoundError, NotADirectoryError):
                return None
        return Object(data=data, etag=_etag(key, data, stat), modified_at=stat.st_mtime, read_at=time.time())

    def get_if_changed(self, key: str, etag: str) -> Object | Unchanged | None:
        found = self.get(key)
        return "unchanged" if found is not None and found.etag == etag else found

    def head(self, key: str) -> Entry | None:
        if key.endswith(".json"):
            found = self.get(key)
            if found is None:
                return None
            return Entry(key=key, size=len(found.data), etag=found.etag, modified_at=found.modified_at)
        with _translated(key):
            try:
                stat = os.stat(self._path(key))
            except (FileNotFoundError, NotADirectoryError):
                return None
        return Entry(key=key, size=stat.st_size, etag=_stat_etag(stat), modified_at=stat.st_mtime)

    def stream(self, key: str, start: int = 0, end: int | None = None, *, match: str | None = None) -> Iterator[bytes]:
        path = self._path(key)
        with _translated(key):
            try:
                file = open(path, "rb", buffering=0)  # noqa: SIM115 closed below; a missing file has its own error
            except (FileNotFoundError, NotADirectoryError):
                raise ObjectMissing(f"{key} is not in the store {self._root}") from None
        with file:
            fd = file.fileno()
            size = os.fstat(fd).st_size
            self._check_pin(key, fd, match)
            left = (size if end is None else min(end, size)) - start
            os.lseek(fd, start, os.SEEK_SET)
            while left > 0:
                with _translated(key):
                    chunk = os.read(fd, min(CHUNK_BYTES, left))
                if not chunk:
                    raise ObjectChanged(f"{key} became shorter while it was read")
                left -= len(chunk)
                # The last chunk is only passed on if nobody wrote to the file (a linked one) in the meantime.
                if left == 0:
                    self._check_pin(key, fd, match)
                yield chunk

    def put(self, key: str, data: bytes, *, absent: bool = False, match: str | None = None) -> str:
        path = self._path(key)
        with _translated(key):
            temporary = self._write_temporary(data)
            try:
                if absent or match is not None:
                    with self._locked():
                        found = self.head(key)
                        holds = found is None if absent else found is not None and found.etag == match
                        if not holds:
                            raise PreconditionFailed(f"{key}: the condition of the write does not hold")
                        return self._publish(temporary, path, key, data)
                return self._publish(temporary, path, key, data)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(temporary)

    def writer(self, key: str) -> "_DirectoryWriter":
        return _DirectoryWriter(self, key)

    def list(self, prefix: str, *, after: str = "") -> Iterator[Entry]:
        folder = prefix.rsplit("/", 1)[0] if "/" in prefix else ""
        with _translated(prefix or self._root):
            keys = sorted(self._keys_below(folder), key=str.encode)
        for key in keys:
            if key.startswith(prefix) and key > after:
                entry = self.head(key)
                if entry is not None:
                    yield entry

    def delete(self, key: str) -> None:
        with _translated(key), suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(self._path(key))

    def link(self, key: str, path: str) -> str | None:
        """A symbolic link; its etag is that of the file it points to. A link that is there is replaced."""
        target, place = os.path.abspath(path), self._path(key)
        with _translated(key):
            self._make_folder(os.path.dirname(place))
            temporary = self.temporary_path()
            os.symlink(target, temporary)
            os.rename(temporary, place)
            return _stat_etag(os.stat(place))

    @contextmanager
    def hold(self, owner: str) -> Iterator[None]:
        """A lock of the operating system's, which ends with the process however it ends."""
        with _translated(owner):
            fd = os.open(self._owner_path(owner), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def is_dead(self, owner: str) -> bool:
        try:
            fd = os.open(self._owner_path(owner), os.O_RDWR)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        else:
            return True
        finally:
            os.close(fd)

    def temporary_path(self) -> str:
        return os.path.join(self._hidden, "tmp", uuid.uuid4().hex)

    def publish(self, temporary: str, key: str) -> str:
        """Make a finished temporary file the object `key`; its etag."""
        with _translated(key):
            return self._publish(temporary, self._path(key), key, None)

    def _publish(self, temporary: str, path: str, key: str, data: bytes | None) -> str:
        folder = os.path.dirname(path)
        self._make_folder(folder)
        stat = os.stat(temporary)
        try:
            os.rename(temporary, path)
        except FileNotFoundError:
            self._made.discard(folder)
            self._make_folder(folder)
            os.rename(temporary, path)
        if self._fsync:
            _sync_folder(folder)
        if data is None and key.endswith(".json"):
            data = Path(path).read_bytes()
        return _etag(key, data or b"", stat)

    def _write_temporary(self, data: bytes) -> str:
        temporary = self.temporary_path()
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            _write_all(fd, data)
            if self._fsync:
                os.fdatasync(fd)
        except OSError:
            os.unlink(temporary)
            raise
        finally:
            os.close(fd)
        return temporary

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # The thread lock first: flock is per open file, and this process has one.
        with self._lock:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._lock_fd, fcntl.LOCK_UN)

    def _make_folder(self, folder: str) -> None:
        if folder not in self._made:
            os.makedirs(folder, exist_ok=True)
            self._made.add(folder)

    def _keys_below(self, folder: str) -> Iterator[str]:
        try:
            entries = list(os.scandir(os.path.join(self._root, folder)))
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            key = f"{folder}/{entry.name}" if folder else entry.name
            if key == _HIDDEN:
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from self._keys_below(key)
            else:
                yield key

    def _check_pin(self, key: str, fd: int, match: str | None) -> None:
        if match is None:
            return
        stat = os.fstat(fd)
        etag = _etag(key, os.pread(fd, stat.st_size, 0), stat) if key.endswith(".json") else _stat_etag(stat)
        if etag != match:
            raise ObjectChanged(f"{key} is not the object that was pinned any more: it was changed or replaced")

    def _path(self, key: str) -> str:
        parts = key.split("/")
        if not key or parts[0] == _HIDDEN or any(p in {"", ".", ".."} for p in parts) or "\0" in key or "\\" in key:
            raise StoreError(f"{key[:200]!r} can not be a key: use relative names without '.', '..' and backslashes")
        return os.path.join(self._root, key)

    def _owner_path(self, owner: str) -> str:
        return os.path.join(self._hidden, "owners", hashlib.sha256(owner.encode()).hexdigest()[:32])


class _DirectoryWriter:
    """Writes beside the objects; the rename at `commit` makes it one."""

    def __init__(self, store: DirectoryStore, key: str) -> None:
        self._store = store
        self._key = key
        self._path = store.temporary_path()
        with _translated(key):
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)

    def write(self, data: bytes) -> None:
        with _translated(self._key):
            _write_all(self._fd, data)

    def commit(self) -> str:
        with _translated(self._key):
            os.fdatasync(self._fd)
        return self._store.publish(self._path, self._key)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)
        with suppress(FileNotFoundError):
            os.unlink(self._path)


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """The operating system's errors, in ours."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StoreUnavailable(f"{what}: the disk is full; free some space, the work goes on") from error
        if error.errno in _DENIED:
            raise StoreError(f"{what}: no permission ({error.strerror}); give this user access to the store") from error
        raise StoreError(f"{what}: {error.strerror or error}") from error


def _etag(key: str, data: bytes, stat: os.stat_result) -> str:
    return hashlib.sha256(data).hexdigest()[:32] if key.endswith(".json") else _stat_etag(stat)


def _stat_etag(stat: os.stat_result) -> str:
    return f"{stat.st_ino:x}-{stat.st_size:x}-{stat.st_mtime_ns:x}"


def _read_all(fd: int, size: int) -> bytes:
    data = os.read(fd, size + 1)
    while chunk := os.read(fd, CHUNK_BYTES):
        data += chunk
    return data


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _sync_folder(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
