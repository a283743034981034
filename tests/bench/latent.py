"""A store whose every call takes a while, in virtual time, for benches: the same on every machine."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Self

sys.path.insert(0, str(Path(__file__).parents[2]))

from batchfile.clock import Clock
from batchfile.store.base import Entry, Object, Store, Unchanged, Writer


class LatentStore:
    """It is its inner store, `latency_s` later. A listing, a stream or a commit is one call."""

    def __init__(self, inner: Store, clock: Clock, latency_s: float) -> None:
        self._inner = inner
        self._clock = clock
        self._latency_s = latency_s

    @property
    def url(self) -> str:
        return self._inner.url

    def get(self, key: str) -> Object | None:
        self._wait()
        return self._inner.get(key)

    def get_if_changed(self, key: str, etag: str) -> Object | Unchanged | None:
        self._wait()
        return self._inner.get_if_changed(key, etag)

    def head(self, key: str) -> Entry | None:
        self._wait()
        return self._inner.head(key)

    def stream(self, key: str, start: int = 0, end: int | None = None, *, match: str | None = None) -> Iterator[bytes]:
        self._wait()
        return self._inner.stream(key, start, end, match=match)

    def put(self, key: str, data: bytes, *, absent: bool = False, match: str | None = None) -> str:
        self._wait()
        return self._inner.put(key, data, absent=absent, match=match)

    def writer(self, key: str, *, is_new: bool = False) -> "_LatentWriter":
        return _LatentWriter(self, self._inner.writer(key, is_new=is_new))

    def list(self, prefix: str, *, after: str = "") -> Iterator[Entry]:
        self._wait()
        return self._inner.list(prefix, after=after)

    def delete(self, key: str) -> None:
        self._wait()
        self._inner.delete(key)

    def delete_many(self, keys: Sequence[str]) -> None:
        self._wait()
        self._inner.delete_many(keys)

    def abort_uploads(self, prefix: str, *, older_s: float) -> int:
        self._wait()
        return self._inner.abort_uploads(prefix, older_s=older_s)

    def link(self, key: str, path: str) -> str | None:
        return self._inner.link(key, path)

    def hold_process_lock(self, owner: str) -> AbstractContextManager[None]:
        return self._inner.hold_process_lock(owner)

    def is_process_dead(self, owner: str) -> bool:
        return self._inner.is_process_dead(owner)

    def commit(self, inner: Writer) -> str:
        self._wait()
        return inner.commit()

    def _wait(self) -> None:
        self._clock.sleep(self._latency_s)


class _LatentWriter:
    def __init__(self, store: LatentStore, inner: Writer) -> None:
        self._store = store
        self._inner = inner

    def write(self, data: bytes) -> None:
        self._inner.write(data)

    def commit(self) -> str:
        return self._store.commit(self._inner)

    def __enter__(self) -> Self:
        self._inner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inner.__exit__(kind, error, trace)
