"""Wraps a store and fails on purpose, for tests and simulations.

There are three ways to fail. `on_call` sees every write: its number from 1, the verb, the key, and whether the write is
about to happen (`before`) or has happened (`after`); what it raises is what the caller gets. `faults` fails at random
with a seed. `ills` belong to keys: each call with such a key gets the same answer.
"""

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, TypeVar

from batchfile.clock import Clock, SystemClock
from batchfile.errors import PreconditionFailed, StoreError, StoreUnavailable
from batchfile.store.base import Object, Store, Unchanged, WrappedStore

Phase = Literal["before", "after"]
T = TypeVar("T")
OnCall = Callable[[int, str, str, Phase], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How often, from 0 to 1 for each call, and for how long. At most one of the write faults happens per call."""

    read: float = 0.0  # a read is answered 503
    before: float = 0.0  # a write is answered 503 and did not happen
    after: float = 0.0  # a write is answered 503 and did happen
    refused: float = 0.0  # a conditional write is answered 409 or 500 and did not happen; others as `before`
    refused_after: float = 0.0  # a conditional write is answered 412 and did happen; others as `after`
    ghost: float = 0.0  # a write is answered 503 and happens later
    delay: float = 0.0  # any call takes up to `delay_s` longer, by the clock
    delay_s: float = 1.0
    ghost_s: float = 300.0  # a ghost happens within this time, with a later call, or when released


# What a store answers to a call with an ill key.
IllAnswer = Literal["500", "400", "403", "405", "501", "EIO", "EACCES", "nonsense"]
_UNAVAILABLE = {"500", "EIO"}
NONSENSE = b"<html><body>Please wait a moment</body></html>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ill:
    """A permanent fault of the keys that match `pattern`, a shell pattern (`batches/*/plan-*`).

    `nonsense` is a response of status 200 with other content, only to reads. `is_read`, `is_write`: what fails;
    listings are reads of their prefix.
    """

    pattern: str
    answer: IllAnswer
    is_read: bool = True
    is_write: bool = True

    def strikes(self, key: str, *, is_write: bool) -> bool:
        return (self.is_write if is_write else self.is_read) and fnmatchcase(key, self.pattern)

    def error(self, key: str) -> StoreError:
        kind = StoreUnavailable if self.answer in _UNAVAILABLE else StoreError
        return kind(f"{key}: {self.answer} on purpose")


@dataclass(frozen=True, slots=True)
class _Ghost:
    due: float
    write: Callable[[], object]


class FaultyStore(WrappedStore):
    """Without `on_call`, `faults` and `ills` it equals its inner store. While `is_down`, every call is answered 503.

    `ills` may be changed at any time.
    """

    def __init__(
        self,
        inner: Store,
        *,
        on_call: OnCall | None = None,
        faults: Faults | None = None,
        seed: int = 0,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(inner)
        self._on_call = on_call
        self._faults = faults or Faults()
        self._random = random.Random(seed)
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._ghosts: list[_Ghost] = []
        self._num_writes = 0
        self.is_down = False
        self.ills: list[Ill] = []

    def get(self, key: str) -> Object | None:
        return self._spoilt(self._inner.get(key)) if self._read(key) else self._inner.get(key)

    def get_if_changed(self, key: str, etag: str) -> Object | Unchanged | None:
        if self._read(key):
            return self._spoilt(self._inner.get(key))
        return self._inner.get_if_changed(key, etag)

    def stream(self, key: str, start: int = 0, end: int | None = None, *, match: str | None = None) -> Iterator[bytes]:
        if self._read(key):
            return iter([NONSENSE])
        return self._inner.stream(key, start, end, match=match)

    def put(self, key: str, data: bytes, *, absent: bool = False, match: str | None = None) -> str:
        data = bytes(data)  # a ghost must not see what the caller does with its buffer later
        write = lambda: self._inner.put(key, data, absent=absent, match=match)  # noqa: E731
        return self._write("put", key, write, is_conditional=absent or match is not None)

    def delete_many(self, keys: Sequence[str]) -> None:
        """Each is a write of its own, so that it can be interrupted in the middle."""
        for key in keys:
            self.delete(key)

    def abort_uploads(self, prefix: str, *, older_s: float) -> int:
        return self._inner.abort_uploads(prefix, older_s=older_s)

    def release_ghosts(self) -> None:
        """Let every delayed write happen now."""
        self._let_happen(float("inf"))

    def _call(self, verb: str, key: str, do: Callable[[], T]) -> T:
        if verb in {"commit", "delete", "link"}:
            return self._write(verb, key, do)
        if verb != "write":  # a writer's bytes do not exist before its commit
            self._read(key)
        return do()

    def _read(self, key: str) -> bool:
        """True: the response is to be nonsense."""
        self._begin(key)
        if self._chance() < self._faults.read:
            raise StoreUnavailable(f"{key}: 503 on purpose")
        for ill in list(self.ills):
            if ill.strikes(key, is_write=False):
                if ill.answer == "nonsense":
                    return True
                raise ill.error(key)
        return False

    @staticmethod
    def _spoilt(found: Object | None) -> Object | None:
        return found and Object(data=NONSENSE, etag="nonsense", modified_at=found.modified_at, read_at=found.read_at)

    def _write(self, verb: str, key: str, write: Callable[[], T], *, is_conditional: bool = False) -> T:
        with self._lock:
            self._num_writes += 1
            number = self._num_writes
        if self._on_call is not None:
            self._on_call(number, verb, key, "before")
        self._begin(key)
        for ill in list(self.ills):
            if ill.answer != "nonsense" and ill.strikes(key, is_write=True):
                raise ill.error(key)
        fault = self._draw()
        if fault == "ghost" and verb != "commit":  # a commit's bytes are gone once its writer is left
            self._ghosts.append(_Ghost(self._clock.monotonic() + self._chance() * self._faults.ghost_s, write))
        refusal = PreconditionFailed if is_conditional else StoreUnavailable
        if fault in {"before", "ghost"}:
            raise StoreUnavailable(f"{key}: 503 on purpose; the write did not happen yet")
        if fault == "refused":
            raise refusal(f"{key}: 409 on purpose; the write did not happen")
        written = write()
        if self._on_call is not None:
            self._on_call(number, verb, key, "after")
        if fault == "after":
            raise StoreUnavailable(f"{key}: 503 on purpose; the write did happen")
        if fault == "refused_after":
            raise refusal(f"{key}: 412 on purpose; the write did happen")
        return written

    def _draw(self) -> str:
        drawn = self._chance()
        for fault in ("before", "after", "refused", "refused_after", "ghost"):
            drawn -= getattr(self._faults, fault)
            if drawn < 0:
                return fault
        return ""

    def _begin(self, key: str) -> None:
        self._let_happen(self._clock.monotonic())
        if self._chance() < self._faults.delay:
            self._clock.sleep(self._chance() * self._faults.delay_s)
        if self.is_down:
            raise StoreUnavailable(f"{key}: down on purpose")

    def _let_happen(self, until: float) -> None:
        with self._lock:
            due = [ghost for ghost in self._ghosts if ghost.due <= until]
            self._ghosts = [ghost for ghost in self._ghosts if ghost.due > until]
        for ghost in due:
            with suppress(StoreError):  # a ghost's rejection reaches no caller
                ghost.write()

    def _chance(self) -> float:
        with self._lock:
            return self._random.random()
