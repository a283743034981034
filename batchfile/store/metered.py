"""Wraps a store and counts its calls: how often, how long, with what outcome. It knows no metrics library.

Verbs are the store's own (a listing or a stream is one call, however many requests it makes); a writer is `write`,
from its first byte to its commit. Outcomes: `ok`, `absent` (nothing was there), `unchanged`, `refused` (a condition
did not hold), `unavailable`, `failed`.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from batchfile.errors import ObjectMissing, PreconditionFailed, StoreUnavailable
from batchfile.store.base import Entry, Store, WrappedStore, WrappedWriter, Writer

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Figure:
    """A number of calls, and the seconds they took together."""

    num: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Call:
    verb: str
    outcome: str


class MeteredStore(WrappedStore):
    """Its inner store, with `figures`."""

    def __init__(self, inner: Store, *, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__(inner)
        self._clock = clock
        self._lock = threading.Lock()
        self._figures: dict[Call, Figure] = {}

    def figures(self) -> dict[Call, Figure]:
        """All calls since the start that have ended."""
        with self._lock:
            return dict(self._figures)

    def stream(self, key: str, start: int = 0, end: int | None = None, *, match: str | None = None) -> Iterator[bytes]:
        return self._drawn("stream", lambda: self._inner.stream(key, start, end, match=match))

    def writer(self, key: str, *, is_new: bool = False) -> Writer:
        return _MeteredWriter(self, key, self._inner.writer(key, is_new=is_new))

    def list(self, prefix: str, *, after: str = "") -> Iterator[Entry]:
        return self._drawn("list", lambda: self._inner.list(prefix, after=after))

    def count(self, verb: str, outcome: str, seconds: float) -> None:
        call = Call(verb, outcome)
        with self._lock:
            known = self._figures.get(call, Figure())
            self._figures[call] = Figure(known.num + 1, known.seconds + seconds)

    def now(self) -> float:
        return self._clock()

    def _call(self, verb: str, key: str, do: Callable[[], T]) -> T:
        started_at = self._clock()
        try:
            found = do()
        except BaseException as error:
            self.count(verb, outcome_of(error), self._clock() - started_at)
            raise
        outcome = "unchanged" if found == "unchanged" else "ok"
        if found is None and verb in {"get", "head"}:
            outcome = "absent"
        self.count(verb, outcome, self._clock() - started_at)
        return found

    def _drawn(self, verb: str, begin: Callable[[], Iterator[T]]) -> Iterator[T]:
        """Counts only the time inside the store, not what the reader does between two items."""
        seconds, outcome, items = 0.0, "ok", None
        try:
            while True:
                started_at = self._clock()
                try:
                    items = begin() if items is None else items
                    item = next(items, None)
                finally:
                    seconds += self._clock() - started_at
                if item is None:
                    return
                yield item
        except GeneratorExit:  # the reader stopped early
            raise
        except BaseException as error:
            outcome = outcome_of(error)
            raise
        finally:
            self.count(verb, outcome, seconds)


class _MeteredWriter(WrappedWriter):
    """Counts once, when it is committed or fails."""

    def __init__(self, store: MeteredStore, key: str, inner: Writer) -> None:
        super().__init__(key, inner, self._spend)
        self._store = store
        self._seconds = 0.0

    def _spend(self, verb: str, key: str, do: Callable[[], T]) -> T:
        started_at = self._store.now()
        try:
            done = do()
        except BaseException as error:
            self._store.count("write", outcome_of(error), self._seconds + self._store.now() - started_at)
            raise
        self._seconds += self._store.now() - started_at
        if verb == "commit":
            self._store.count("write", "ok", self._seconds)
        return done


def outcome_of(error: BaseException) -> str:
    if isinstance(error, PreconditionFailed):
        return "refused"
    if isinstance(error, ObjectMissing):
        return "absent"
    return "unavailable" if isinstance(error, StoreUnavailable) else "failed"
