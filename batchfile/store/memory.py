"""A store in this process's memory: the reference for other stores, and the store of tests."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from batchfile.clock import Clock, SystemClock
from batchfile.errors import ObjectChanged, ObjectMissing, PreconditionFailed
from batchfile.store.base import Entry, Object, Store, Writer, check_key

CHUNK_BYTES = 1024 * 1024


class MemoryStore(Store):
    """Everything under one lock; etags are hashes of the content. Tests declare a process dead with `kill`."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._objects: dict[str, Object] = {}
        self._lock = threading.Lock()
        self._dead: set[str] = set()

    @property
    def url(self) -> str:
        return "memory:"

    def get(self, key: str) -> Object | None:
        check_key(key)
        with self._lock:
            found = self._objects.get(key)
        if found is None:
            return None
        return Object(data=found.data, etag=found.etag, modified_at=found.modified_at, read_at=self._clock.now())

    def head(self, key: str) -> Entry | None:
        found = self.get(key)
        return None if found is None else _entry(key, found)

    def stream(self, key: str, start: int = 0, end: int | None = None, *, match: str | None = None) -> Iterator[bytes]:
        found = self.get(key)
        if found is None:
            raise ObjectMissing(f"{key} is not in the store")
        if match is not None and found.etag != match:
            raise ObjectChanged(f"{key} has changed since it was pinned")
        data = found.data[start:end]
        for at in range(0, len(data), CHUNK_BYTES):
            yield data[at : at + CHUNK_BYTES]

    def put(self, key: str, data: bytes, *, absent: bool = False, match: str | None = None) -> str:
        check_key(key)
        data = bytes(data)  # a caller's buffer may change later
        etag = hashlib.sha256(data).hexdigest()[:32]
        now = self._clock.now()
        with self._lock:
            found = self._objects.get(key)
            if (absent and found is not None) or (match is not None and (found is None or found.etag != match)):
                raise PreconditionFailed(f"{key}: the condition of the write does not hold")
            self._objects[key] = Object(data=data, etag=etag, modified_at=now, read_at=now)
        return etag

    def writer(self, key: str, *, is_new: bool = False) -> Writer:
        return _MemoryWriter(self, key)

    def list(self, prefix: str, *, after: str = "") -> Iterator[Entry]:
        with self._lock:
            found = [(key, item) for key, item in self._objects.items() if key.startswith(prefix) and key > after]
        for key, item in sorted(found, key=lambda pair: pair[0]):  # code point order is byte order in UTF-8
            yield _entry(key, item)

    def delete(self, key: str) -> None:
        check_key(key)
        with self._lock:
            self._objects.pop(key, None)

    @contextmanager
    def hold_process_lock(self, process: str) -> Iterator[None]:
        self._dead.discard(process)
        yield

    def is_process_dead(self, process: str) -> bool:
        return process in self._dead

    def kill(self, process: str) -> None:
        """`process` counts as dead from now on."""
        self._dead.add(process)


class _MemoryWriter(Writer):
    def __init__(self, store: MemoryStore, key: str) -> None:
        self._store = store
        self._key = check_key(key)
        self._data = bytearray()

    def write(self, data: bytes) -> None:
        self._data += data

    def commit(self) -> str:
        return self._store.put(self._key, bytes(self._data))

    def __exit__(self, *error: object) -> None:
        self._data.clear()


def _entry(key: str, found: Object) -> Entry:
    return Entry(key=key, size=len(found.data), etag=found.etag, modified_at=found.modified_at)
