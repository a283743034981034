"""The seam to whatever keeps bytes: an S3 bucket, a directory, memory.

A key is a relative path with forward slashes, never empty, without `.` or `..` segments.
Axioms that every implementation keeps: an acknowledged put is durable; a get of one key is consistent;
a conditional put of one key is linearisable. Listings, ages and clocks are hints.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Object:
    """One object as it was read. Both times are the store's clock, in seconds since the epoch."""

    data: bytes
    etag: str
    modified_at: float
    read_at: float

    @property
    def age_s(self) -> float:
        return max(0.0, self.read_at - self.modified_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of a listing, or what a head answers. `modified_at` is the store's clock."""

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
        """Make the object visible; its etag."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Store(Protocol):
    """Raises everywhere: StoreUnavailable when the store does not answer. All methods are thread-safe."""

    @property
    def url(self) -> str:
        """How a person names this store: `s3://bucket/prefix`, a directory's path, `memory:`."""
        ...

    def get(self, key: str) -> Object | None:
        """The whole object, or None where there is none."""
        ...

    def get_if_changed(self, key: str, etag: str) -> Object | Unchanged | None:
        """The object unless it still has this etag (HTTP's If-None-Match on a get)."""
        ...

    def head(self, key: str) -> Entry | None: ...

    def stream(self, key: str, start: int = 0, end: int | None = None, *, match: str | None = None) -> Iterator[bytes]:
        """The bytes [start, end) in chunks of at most 1 MiB, read as they are asked for.

        Raises: ObjectMissing; ObjectChanged where the object's etag is not `match`. A short read is retried
        inside and never passed on as the end.
        """
        ...

    def put(self, key: str, data: bytes, *, absent: bool = False, match: str | None = None) -> str:
        """Write the whole object; its new etag. At most one condition: `absent`, or `match` an etag.

        Raises: PreconditionFailed where the condition did not hold, or where the store answered 404, 409 or
        500 to a conditional write (a lost race on some servers). The writer finds out by reading back.
        """
        ...

    def writer(self, key: str, *, is_new: bool = False) -> Writer:
        """`is_new`: nothing else ever writes this key. The object and its etag then stay as `commit` found them, even
        where the store takes a request of this writer twice, or long after its time.
        """
        ...

    def list(self, prefix: str, *, after: str = "") -> Iterator[Entry]:
        """Every object whose key starts with `prefix` and sorts after `after`, in byte order of the keys."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object; no error where there is none."""
        ...

    def delete_many(self, keys: Sequence[str]) -> None:
        """As `delete` of each, in as few requests as the store knows, in any order. Cut off, some are left."""
        ...

    def abort_uploads(self, prefix: str, *, older_s: float) -> int:
        """Free what killed writers left of objects under `prefix`, begun so long ago; how many. Best effort."""
        ...

    def link(self, key: str, path: str) -> str | None:
        """Let `key` stand for the file at `path` without copying it; its etag, or None: can not, copy it."""
        ...

    def hold_process_lock(self, owner: str) -> AbstractContextManager[None]:
        """While entered, `owner` is known to be alive to whoever can tell (see `is_process_dead`)."""
        ...

    def is_process_dead(self, owner: str) -> bool:
        """True only where the store knows for sure that `owner` no longer lives; False is no answer."""
        ...

    def check_locks(self) -> None:
        """For a health check, every few seconds. Raises: StoreUnavailable where a process that does not move on has a
        lock that writes need.
        """
        ...
