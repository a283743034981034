"""A store that fails on purpose, around one that does not: for tests and simulations.

`on_call` sees every write: its number from 1, the verb, the key, and whether the write is about to happen (`before`)
or has happened (`after`). What it raises is what the caller gets.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Literal, Self, TypeVar

from batchfile.store.base import Entry, Object, Store, Unchanged, Writer

Phase = Literal["before", "after"]
T = TypeVar("T")
OnCall = Callable[[int, str, str, Phase], None]


class FaultyStore:
    """Reads pass through; writes go through `on_call`."""

    def __init__(self, inner: Store, *, on_call: OnCall) -> None:
        self._inner = inner
        self._on_call = on_call
        self._num_writes = 0

    @property
    def url(self) -> str:
        return self._inner.url

    def get(self, key: str) -> Object | None:
        return self._inner.get(key)

    def get_if_changed(self, key: str, etag: str) -> Object | Unchanged | None:
        return self._inner.get_if_changed(key, etag)

    def head(self, key: str) -> Entry | None:
        return self._inner.head(key)

    def stream(self, key: str, start: int = 0, end: int | None = None, *, match: str | None = None) -> Iterator[bytes]:
        return self._inner.stream(key, start, end, match=match)

    def put(self, key: str, data: bytes, *, absent: bool = False, match: str | None = None) -> str:
        return self._write("put", key, lambda: self._inner.put(key, data, absent=absent, match=match))

    def writer(self, key: str) -> "_FaultyWriter":
        return _FaultyWriter(self, key, self._inner.writer(key))

    def list(self, prefix: str, *, after: str = "") -> Iterator[Entry]:
        return self._inner.list(prefix, after=after)

    def delete(self, key: str) -> None:
        self._write("delete", key, lambda: self._inner.delete(key))

    def link(self, key: str, path: str) -> str | None:
        return self._write("link", key, lambda: self._inner.link(key, path))

    def hold(self, owner: str) -> AbstractContextManager[None]:
        return self._inner.hold(owner)

    def is_dead(self, owner: str) -> bool:
        return self._inner.is_dead(owner)

    def _write(self, verb: str, key: str, write: Callable[[], T]) -> T:
        self._num_writes += 1
        number = self._num_writes
        self._on_call(number, verb, key, "before")
        written = write()
        self._on_call(number, verb, key, "after")
        return written


class _FaultyWriter:
    def __init__(self, store: FaultyStore, key: str, inner: Writer) -> None:
        self._store = store
        self._key = key
        self._inner = inner

    def write(self, data: bytes) -> None:
        self._inner.write(data)

    def commit(self) -> str:
        return self._store._write("commit", self._key, self._inner.commit)

    def __enter__(self) -> Self:
        self._inner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inner.__exit__(kind, error, trace)
