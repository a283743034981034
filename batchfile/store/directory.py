"""A directory as a store: the embedded default. Several processes of one machine may use it at once.

An object is a file. A write is a temporary file that is synced and atomically renamed, and the rename is synced too
before the write is acknowledged. A name changes only under the file lock of its key, so conditions hold across threads
and processes. Etags are a hash of the content for `.json` documents, and (inode, size, mtime in ns) for all else; for a
user's file that a key links to, also ctime, which no program can set back. Locks and unfinished writes are below
`.store/`.
"""

import fcntl
import hashlib
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress

from batchfile.child_env import write_all
from batchfile.errors import ObjectChanged, ObjectMissing, PreconditionFailed, StoreError, StoreUnavailable
from batchfile.store import files
from batchfile.store.base import INTERNAL, Entry, Object, SkippedKeys, Store, Unchanged, Writer, check_key, is_unicode
from batchfile.store.files import CHUNK_BYTES, translated
from batchfile.store.locks import KeyLocks, ProcessLocks, remove_unlocked

OTHERS = "inbox/"  # others write below it: no link is followed there
LEFTOVER_AGE_S = 3600.0  # an unfinished write of a dead process is removed after this
_ETAG_HEX_DIGITS = 32
# Files that macOS, NFS and FUSE put next to other files.
_STRAY = re.compile(r"\.DS_Store|\._.*|\.nfs[0-9a-f]+|\.fuse_hidden[0-9a-f]+")


class DirectoryStore(Store):
    """`fsync` False is for tests: an acknowledged write then survives a killed process, but not a power failure."""

    def __init__(self, path: str | os.PathLike[str], *, fsync: bool = True) -> None:
        self._root = os.path.abspath(path)
        self._fsync = fsync
        self._locks_folder = os.path.join(self._root, INTERNAL, "locks")
        self._key_locks = KeyLocks(self._locks_folder)
        processes = os.path.join(self._root, INTERNAL, "processes")
        self._process_locks = ProcessLocks(processes)
        self._unfinished = os.path.join(self._root, INTERNAL, "unfinished")
        self._skipped_keys = SkippedKeys()
        with translated(self._root):
            for folder in (processes, self._unfinished, self._locks_folder):
                files.make_folders(folder, fsync=fsync)
            self._key_locks.make()
            now = time.time()
            remove_unlocked(self._unfinished, older_than=now - LEFTOVER_AGE_S)
            self._process_locks.forget_old(now)

    @property
    def url(self) -> str:
        return self._root

    def get(self, key: str) -> Object | None:
        path = self._path(key)
        with translated(path):
            fd = files.open_file(self._root, key, follow=not _is_of_others(key))
            if fd is None:
                self._check_alive()
                return None
            try:
                found, data = os.fstat(fd), files.read_all(fd)
            finally:
                os.close(fd)
        etag = _content_etag(data) if _is_document(key) else _stat_etag(found, is_linked=os.path.islink(path))
        return Object(data=data, etag=etag, modified_at=found.st_mtime, read_at=time.time())

    def get_if_changed(self, key: str, etag: str) -> Object | Unchanged | None:
        if not _is_document(key):
            entry = self.head(key)
            if entry is not None and entry.etag == etag:
                return "unchanged"
        found = self.get(key)
        return "unchanged" if found is not None and found.etag == etag else found

    def head(self, key: str) -> Entry | None:
        if _is_document(key):
            document = self.get(key)
            if document is None:
                return None
            return Entry(key=key, size=len(document.data), etag=document.etag, modified_at=document.modified_at)
        path = self._path(key)
        with translated(path):
            found = files.stat_file(self._root, key, follow=not _is_of_others(key))
            if found is None:
                self._check_alive()
                return None
            etag = _stat_etag(found, is_linked=os.path.islink(path))
        return Entry(key=key, size=found.st_size, etag=etag, modified_at=found.st_mtime)

    def stream(self, key: str, start: int = 0, end: int | None = None, *, match: str | None = None) -> Iterator[bytes]:
        path = self._path(key)
        with translated(path):
            fd = files.open_file(self._root, key, follow=not _is_of_others(key))
        if fd is None:
            self._check_alive()
            raise ObjectMissing(f"{key} is not in the store {self._root}")
        try:
            _check_pin(key, path, fd, match)
            size = os.fstat(fd).st_size
            at, end = start, size if end is None else min(end, size)
            while at < end:
                with translated(path):
                    chunk = os.pread(fd, min(CHUNK_BYTES, end - at), at)
                if not chunk:
                    raise ObjectChanged(f"{path} became shorter while it was read")
                at += len(chunk)
                # Return the last chunk only if the (linked) file was not written to in the meantime.
                if at == end:
                    _check_pin(key, path, fd, match)
                yield chunk
        finally:
            os.close(fd)

    def put(self, key: str, data: bytes, *, absent: bool = False, match: str | None = None) -> str:
        with self.writer(key) as unfinished:
            unfinished.write(data)
            return unfinished.commit(absent=absent, match=match)

    def writer(self, key: str, *, is_new: bool = False) -> "_DirectoryWriter":
        return _DirectoryWriter(self, key, self._path(key), self._unfinished_path(), fsync=self._fsync)

    def list(self, prefix: str, *, after: str = "") -> Iterator[Entry]:
        folder, _, start = prefix.rpartition("/")
        if "/" in prefix:
            check_key(folder)
        with translated(os.path.join(self._root, prefix)):
            for key in self._keys(folder, start, after):
                try:
                    entry = self.head(key)
                except StoreUnavailable:
                    raise
                except StoreError as error:
                    if not _is_of_others(key):
                        raise
                    self._skipped_keys.note(key, str(error))
                    continue
                if entry is not None:
                    yield entry
                elif _is_of_others(key) and os.path.lexists(self._path(key)):
                    self._skipped_keys.note(key, "a link, below a link, or not a regular file; copy the file itself")

    def delete(self, key: str) -> None:
        path = self._path(key)
        with translated(path), self._key_locks.held(key):
            with suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(path)
            if not _is_of_others(key):
                files.remove_empty_folders(os.path.dirname(path), self._root)

    def link(self, key: str, path: str) -> str | None:
        """A symbolic link: its etag changes with the file, and deleting the key leaves the file alone.

        None if `path` is not a regular file (say, a pipe). Raises: ObjectMissing if nothing is there.
        """
        target, place, temporary = os.path.abspath(path), self._path(key), self._unfinished_path()
        with translated(target):
            if not os.path.exists(target):
                raise ObjectMissing(f"{target} does not exist")
            if files.stat_file("", target, follow=True) is None:
                return None
        with translated(place):
            os.symlink(target, temporary)
            self.publish(temporary, key)
        entry = self.head(key)
        return None if entry is None else entry.etag

    def hold_process_lock(self, process: str) -> AbstractContextManager[None]:
        return self._process_locks.hold(process)

    def is_process_dead(self, process: str) -> bool:
        return self._process_locks.is_dead(process)

    def check_locks(self) -> None:
        with translated(self._locks_folder):
            self._key_locks.check()

    def publish(self, temporary: str, key: str, *, absent: bool = False, match: str | None = None) -> None:
        """Turn a finished file into the object `key`, if the condition holds under the lock."""
        path = self._path(key)
        folder = os.path.dirname(path)
        is_conditional = absent or match is not None
        with self._key_locks.held(key):
            found = self.head(key) if is_conditional else None
            if is_conditional and (found.etag if found is not None else None) != match:
                raise PreconditionFailed(f"{key}: the condition of the write does not hold")
            files.rename(temporary, path, fsync=self._fsync)
            # A process acts on a record that it sees, so the record must be durable before any other process can see
            # it.
            if self._fsync and is_conditional:
                files.sync_folder(folder)
        if self._fsync and not is_conditional:
            files.sync_folder(folder)

    def _check_alive(self) -> None:
        """Is only the object missing, or the whole store (unmounted, moved)? Raises: StoreUnavailable."""
        if not os.path.lexists(self._locks_folder):
            raise StoreUnavailable(f"{self._root}: the store's directory is missing: restore it, or start again")

    def _keys(self, folder: str, start: str, after: str) -> Iterator[str]:
        """Keys below `folder` whose next segment begins with `start`, lazily, in byte order (= code point order)."""
        try:
            with os.scandir(os.path.join(self._root, folder)) as found:
                # A folder sorts like its keys: with the slash.
                names = [
                    e.name + "/" if e.is_dir(follow_symlinks=False) else e.name
                    for e in found
                    if e.name.startswith(start) and self._is_listed(folder, e.name)
                ]
        except (FileNotFoundError, NotADirectoryError):
            self._check_alive()
            return
        except PermissionError as error:
            if not _is_of_others(f"{folder}/"):
                raise
            self._skipped_keys.note(folder, str(error))
            return
        names.sort()
        for name in names:
            key = f"{folder}/{name}" if folder else name
            if not name.endswith("/"):
                if key > after:
                    yield key
            elif key != f"{INTERNAL}/" and (key > after or after.startswith(key)):
                yield from self._keys(key[:-1], "", after)

    def _is_listed(self, folder: str, name: str) -> bool:
        """False for files that a system puts next to the others."""
        if is_unicode(name):
            return _STRAY.fullmatch(name) is None
        if _is_of_others(f"{folder}/"):
            self._skipped_keys.note(f"{folder}/{name}", "the name is not UTF-8; rename the file")
        return False

    def _path(self, key: str) -> str:
        return os.path.join(self._root, check_key(key))

    def _unfinished_path(self) -> str:
        return os.path.join(self._unfinished, uuid.uuid4().hex)


class _DirectoryWriter(Writer):
    """Writes a file next to the objects; the rename at `commit` turns it into one."""

    def __init__(self, store: DirectoryStore, key: str, path: str, temporary: str, *, fsync: bool) -> None:
        self._store = store
        self._key = key
        self._path = path
        self._temporary = temporary
        self._fsync = fsync
        self._hash = hashlib.sha256() if _is_document(key) else None
        with translated(path):
            self._fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            fcntl.flock(self._fd, fcntl.LOCK_EX)  # tells the sweep that a process is still writing

    def write(self, data: bytes) -> None:
        with translated(self._path):
            write_all(self._fd, data)
        if self._hash is not None:
            self._hash.update(data)

    def commit(self, *, absent: bool = False, match: str | None = None) -> str:
        with translated(self._path):
            if self._fsync:
                files.sync_data(self._fd)
            found = os.fstat(self._fd)
            self._store.publish(self._temporary, self._key, absent=absent, match=match)
        return _stat_etag(found, is_linked=False) if self._hash is None else self._hash.hexdigest()[:_ETAG_HEX_DIGITS]

    def __exit__(self, *error: object) -> None:
        os.close(self._fd)
        with suppress(OSError):  # already renamed by a commit
            os.unlink(self._temporary)


def _is_of_others(key: str) -> bool:
    return key.startswith(OTHERS)


def _is_document(key: str) -> bool:
    return key.endswith(".json")


def _content_etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_ETAG_HEX_DIGITS]


def _stat_etag(found: os.stat_result, *, is_linked: bool) -> str:
    """Without ctime for the store's own files: a backup by hard links changes it, and so does chmod."""
    etag = f"{found.st_ino:x}-{found.st_size:x}-{found.st_mtime_ns:x}"
    return f"{etag}-{found.st_ctime_ns:x}" if is_linked else etag


def _check_pin(key: str, path: str, fd: int, match: str | None) -> None:
    if match is None:
        return
    with translated(path):
        found = os.fstat(fd)
        if _is_document(key):
            etag = _content_etag(os.pread(fd, found.st_size, 0))
        else:
            etag = _stat_etag(found, is_linked=os.path.islink(path))
    if etag != match:
        raise ObjectChanged(f"{path} has changed since it was pinned")
