"""The interface of all stores (an S3 bucket, a directory, memory), and which names can be keys.

Guarantees of every store: an acknowledged put is durable; a get of one key is consistent; a conditional put of one key
is linearizable. Listings, ages and clocks are hints.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, TypeVar

import structlog

from batchfile.errors import StoreError

log = structlog.get_logger()

T = TypeVar("T")

INTERNAL = ".store"  # the first segment of the store's own files: never an object, never listed
SKIPPED_KEYS_MAX = 10_000  # remembered names; more are skipped without a log line
_SHOWN_CHARS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Object:
    """One object as it was read. Both times are by the store's clock, in epoch seconds."""

    data: bytes
    etag: str
    modified_at: float
    read_at: float

    @property
    def age_s(self) -> float:
        return max(0.0, self.read_at - self.modified_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of a listing, or the answer to a head. `modified_at` is by the store's clock."""

    key: str
    size: int
    etag: str
    modified_at: float


Unchanged = Literal["unchanged"]


class Writer(Protocol):
    """A streamed write of a new object. Nothing is visible before `commit`; leaving without it aborts.

    Used as a context manager: `with store.writer(key) as w: w.write(b); etag = w.commit()`.
    """

    def write(self, data: bytes) -> None: ...

    def commit(self) -> str:
        """Make the object visible; returns its etag."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...


class Store(Protocol):
    """Every method raises StoreUnavailable when the store does not answer. All methods are thread-safe.

    The methods with a body are optional: the body is right for a store without that feature.
    """

    @property
    def url(self) -> str:
        """How a person names this store: `s3://bucket/prefix`, a directory's path, `memory:`."""
        ...

    def get(self, key: str) -> Object | None:
        """The whole object, or None if it does not exist."""
        ...

    def get_if_changed(self, key: str, etag: str) -> Object | Unchanged | None:
        """The object, unless it still has this etag (If-None-Match of HTTP)."""
        found = self.get(key)
        return "unchanged" if found is not None and found.etag == etag else found

    def head(self, key: str) -> Entry | None: ...

    def stream(self, key: str, start: int = 0, end: int | None = None, *, match: str | None = None) -> Iterator[bytes]:
        """The bytes [start, end) in chunks of at most 1 MiB, read on demand.

        Raises: ObjectMissing; ObjectChanged if the object's etag is not `match`. A short read is retried
        inside and never returned as the end.
        """
        ...

    def put(self, key: str, data: bytes, *, absent: bool = False, match: str | None = None) -> str:
        """Write the whole object; returns its new etag. At most one condition: `absent`, or `match` an etag.

        Raises: PreconditionFailed if the condition did not hold, or the store answered 404, 409 or 500 to a conditional
        write (a lost race on some servers). The writer finds out by reading back.
        """
        ...

    def writer(self, key: str, *, is_new: bool = False) -> Writer:
        """`is_new`: nothing else ever writes this key. The object and its etag then stay as `commit` found them, even
        if the store executes a request of this writer twice, or very late.
        """
        ...

    def list(self, prefix: str, *, after: str = "") -> Iterator[Entry]:
        """Every object whose key starts with `prefix` and sorts after `after`, in byte order of the keys."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object; no error if it does not exist."""
        ...

    def delete_many(self, keys: Sequence[str]) -> None:
        """Delete all of them in as few requests as possible, in any order. An interrupted call leaves some."""
        for key in keys:
            self.delete(key)

    def abort_uploads(self, prefix: str, *, older_s: float) -> int:
        """Free what killed writers left under `prefix` at least so long ago; returns how many. Best effort."""
        return 0

    def link(self, key: str, path: str) -> str | None:
        """Let `key` stand for the file at `path` without a copy; its etag, or None if the store cannot link."""
        return None

    def hold_process_lock(self, process: str) -> AbstractContextManager[None]:
        """While entered, every process that can tell knows `process` to be alive (see `is_process_dead`)."""
        return nullcontext()

    def is_process_dead(self, process: str) -> bool:
        """True only if the store is sure that `process` no longer lives; False says nothing."""
        return False

    def check_locks(self) -> None:
        """For a health check, every few seconds. Raises: StoreUnavailable if a stalled process holds a lock that writes
        need.
        """
        return None


class WrappedStore(Store):
    """A store around another, for subclasses: every request goes through `_call`, which may count it or let it fail."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner

    def _call(self, verb: str, key: str, do: Callable[[], T]) -> T:
        """`verb`: get, head, stream, put, write, commit, list, delete or link. `key`: a listing's prefix."""
        return do()

    @property
    def url(self) -> str:
        return self._inner.url

    def get(self, key: str) -> Object | None:
        return self._call("get", key, lambda: self._inner.get(key))

    def get_if_changed(self, key: str, etag: str) -> Object | Unchanged | None:
        return self._call("get", key, lambda: self._inner.get_if_changed(key, etag))

    def head(self, key: str) -> Entry | None:
        return self._call("head", key, lambda: self._inner.head(key))

    def stream(self, key: str, start: int = 0, end: int | None = None, *, match: str | None = None) -> Iterator[bytes]:
        return self._call("stream", key, lambda: self._inner.stream(key, start, end, match=match))

    def put(self, key: str, data: bytes, *, absent: bool = False, match: str | None = None) -> str:
        return self._call("put", key, lambda: self._inner.put(key, data, absent=absent, match=match))

    def writer(self, key: str, *, is_new: bool = False) -> Writer:
        return WrappedWriter(key, self._inner.writer(key, is_new=is_new), self._call)

    def list(self, prefix: str, *, after: str = "") -> Iterator[Entry]:
        return self._call("list", prefix, lambda: self._inner.list(prefix, after=after))

    def delete(self, key: str) -> None:
        self._call("delete", key, lambda: self._inner.delete(key))

    def delete_many(self, keys: Sequence[str]) -> None:
        self._call("delete", "", lambda: self._inner.delete_many(keys))

    def abort_uploads(self, prefix: str, *, older_s: float) -> int:
        return self._call("list", prefix, lambda: self._inner.abort_uploads(prefix, older_s=older_s))

    def link(self, key: str, path: str) -> str | None:
        return self._call("link", key, lambda: self._inner.link(key, path))

    def hold_process_lock(self, process: str) -> AbstractContextManager[None]:
        return self._inner.hold_process_lock(process)

    def is_process_dead(self, process: str) -> bool:
        return self._inner.is_process_dead(process)

    def check_locks(self) -> None:
        self._inner.check_locks()


class WrappedWriter(Writer):
    """The writer of a WrappedStore."""

    def __init__(self, key: str, inner: Writer, call: Callable[[str, str, Callable[[], Any]], Any]) -> None:
        self._key = key
        self._inner = inner
        self._call = call

    def write(self, data: bytes) -> None:
        self._call("write", self._key, lambda: self._inner.write(data))

    def commit(self) -> str:
        return self._call("commit", self._key, self._inner.commit)  # type: ignore[no-any-return]

    def __exit__(self, *error: object) -> None:
        self._inner.__exit__(*error)


def is_key(name: str) -> bool:
    """A relative path with forward slashes, valid Unicode, without empty, `.` or `..` segments.

    The same rule for every store, so that a batch can be moved between stores.
    """
    segments = name.split("/")
    if "" in segments or "." in segments or ".." in segments or segments[0] == INTERNAL:
        return False
    return "\\" not in name and "\0" not in name and is_unicode(name)


def check_key(key: str) -> str:
    """Return the key itself. Raises: StoreError for a name that no object can have."""
    if not is_key(key):
        raise StoreError(
            f"{key[:_SHOWN_CHARS]!r} cannot be a key; use a relative path with forward slashes, "
            f"without empty, '.' or '..' segments and not below {INTERNAL}"
        )
    return key


def is_unicode(name: str) -> bool:
    """False for names that the operating system could not decode (lone surrogates)."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


class SkippedKeys:
    """Names in a store that cannot be keys: each is logged once. Thread-safe."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._lock = threading.Lock()

    def note(self, name: str, why: str) -> None:
        with self._lock:
            if name in self._known or len(self._known) >= SKIPPED_KEYS_MAX:
                return
            self._known.add(name)
        log.warning("store.skipped_keys", key=name.encode(errors="backslashreplace").decode(), error=why)
