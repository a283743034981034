"""Proves that a store enforces write conditions: one that ignores them would lose work silently.

Races a few writers on fresh keys, through the Store interface alone. Requests that a busy store leaves unanswered (429,
503, a timeout) prove nothing; only an acknowledged write that must have been rejected does.
"""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal
from uuid import uuid4

from batchfile.clock import Clock, SystemClock
from batchfile.errors import ObjectChanged, ObjectMissing, PreconditionFailed, StoreError, StoreUnavailable, StoreUnfit
from batchfile.store.base import Store

FIT_STORES = (
    "Use AWS S3, Cloudflare R2, MinIO (October 2025 or later), SeaweedFS (4.17 or later), Ceph (20 or later), Tigris, "
    "or a local directory."
)
PREFIX = "proof/"
PAUSE_S = 0.6  # after an unclear answer; some stores take one write per second and key
REFUSALS_MAX = 4  # in a row; then the store counts as rejecting all conditional writes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Effort:
    budget_s: float  # no request begins later than this
    num_writers: int
    num_rounds: int


LIGHT = _Effort(budget_s=15.0, num_writers=4, num_rounds=2)
HEAVY = _Effort(budget_s=60.0, num_writers=16, num_rounds=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """`kept`: how often each rule was seen to hold; 0 if the store was too busy to tell."""

    kept: Mapping[str, int]
    seconds: float

    @property
    def unclear(self) -> str:
        """The rules that the store was too busy for; empty if all were seen to hold."""
        return "; ".join(rule for rule, num_rounds in self.kept.items() if not num_rounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What one writer was told: success (an etag), rejection, or nothing."""

    data: bytes
    etag: str | None = None
    is_refused: bool = False


_Finding = Literal["kept", "busy", "refused"]  # refused: no write was accepted


def prove_conditions(store: Store, *, heavy: bool = False, clock: Clock | None = None) -> Proof:
    """Prove both conditions: light in about a second, heavy in ten. Leaves nothing behind.

    A slow or busy store gets 15 s, or a minute; the result names what is still unclear then.

    Raises: StoreUnfit with what was observed; StoreUnavailable if the store does not answer at all.
    """
    prover = _Prover(store, HEAVY if heavy else LIGHT, clock or SystemClock())
    try:
        proof = prover.run()
    except BaseException:
        with suppress(StoreError):
            prover.tidy()
        raise
    prover.tidy()  # also shows that deleting is allowed
    return proof


class _Prover:
    def __init__(self, store: Store, effort: _Effort, clock: Clock) -> None:
        self._store = store
        self._effort = effort
        self._clock = clock
        self._began = clock.monotonic()
        self._keys: list[str] = []
        self._rules: dict[str, Callable[[], _Finding]] = {
            "of several writers that create one object, one succeeds": self._create,
            "an object that exists is not created again": self._create_again,
            "of several writers that replace one version, one succeeds": self._replace,
            "a version that was replaced is not replaced again": self._replace_stale,
            "an object that does not exist is not replaced": self._replace_missing,
            "a read pinned to a version gives that version or fails": self._read,
        }
        self._kept = dict.fromkeys(self._rules, 0)
        self._key = ""  # of the latest creation
        self._before = self._after = ""  # etags around the latest replacement

    def run(self) -> Proof:
        self._store.put(self._new_key(), _new_data())  # a store that does not answer fails here
        for _ in range(self._effort.num_rounds):
            for rule, look in self._rules.items():
                self._repeat(rule, look)
        return Proof(kept=self._kept, seconds=self._clock.monotonic() - self._began)

    def tidy(self) -> None:
        for key in self._keys:
            self._store.delete(key)

    def _repeat(self, rule: str, look: Callable[[], _Finding]) -> None:
        """Test one rule until the answer is clear or the time is up."""
        num_refused = 0
        while self._clock.monotonic() - self._began < self._effort.budget_s:
            try:
                finding = look()
            except (StoreUnavailable, ObjectMissing, ObjectChanged):  # busy, or a late write came in between
                finding = "busy"
            if finding == "kept":
                self._kept[rule] += 1
                return
            num_refused += finding == "refused"
            if num_refused >= REFUSALS_MAX:
                raise self._unfit(f"it rejected {num_refused} times a write that must succeed: {rule}")
            self._clock.sleep(PAUSE_S)

    def _create(self) -> _Finding:
        key = self._key = self._new_key()
        finding = self._race(key, lambda data: self._store.put(key, data, absent=True))
        # All were rejected and yet the object exists: a writer whose answer was lost came first.
        return "busy" if finding == "refused" and self._store.head(key) is not None else finding

    def _create_again(self) -> _Finding:
        self._etag()
        return self._must_refuse(
            "a write with If-None-Match: * replaced an existing object",
            lambda data: self._store.put(self._key, data, absent=True),
        )

    def _replace(self) -> _Finding:
        before = self._before = self._etag()
        finding = self._race(self._key, lambda data: self._store.put(self._key, data, match=before))
        self._after = self._etag()
        if finding == "kept" and before == self._after:
            raise self._unfit("a write with If-Match was acknowledged but changed nothing")
        return "busy" if finding == "refused" and before != self._after else finding

    def _replace_stale(self) -> _Finding:
        if self._before == self._after:
            return "busy"  # nothing was replaced yet
        return self._must_refuse(
            "a write with If-Match replaced a version that was no longer there",
            lambda data: self._store.put(self._key, data, match=self._before),
        )

    def _replace_missing(self) -> _Finding:
        key = self._new_key()
        return self._must_refuse(
            "a write with If-Match created an object that did not exist",
            lambda data: self._store.put(key, data, match=self._after or "0" * 32),
        )

    def _read(self) -> _Finding:
        if self._before == self._after:
            return "busy"
        if not b"".join(self._store.stream(self._key, match=self._etag())):
            raise self._unfit("a read with If-Match returned nothing")
        try:
            list(self._store.stream(self._key, match=self._before))
        except ObjectChanged:
            return "kept"
        raise self._unfit("a read with If-Match returned another version")

    def _race(self, key: str, write: Callable[[bytes], str]) -> _Finding:
        num_writers = self._effort.num_writers
        barrier = threading.Barrier(num_writers)

        def run(_: int) -> _Answer:
            barrier.wait()
            return _ask(write)

        with ThreadPoolExecutor(num_writers) as threads:
            answers = list(threads.map(run, range(num_writers)))
        done = [answer for answer in answers if answer.etag is not None]
        if len(done) > 1:
            raise self._unfit(f"{len(done)} of {num_writers} racing writers were told that they won; at most one can")
        if not done:
            return "refused" if all(answer.is_refused for answer in answers) else "busy"
        found = self._store.get(key)
        if found is None or found.data != done[0].data:
            # A writer without an answer may have been first; the acknowledged write must be there nevertheless.
            raise self._unfit("the object does not contain what the only acknowledged writer wrote")
        return "kept"

    def _must_refuse(self, crime: str, write: Callable[[bytes], str]) -> _Finding:
        answer = _ask(write)
        if answer.etag is not None:
            raise self._unfit(crime)
        return "kept" if answer.is_refused else "busy"

    def _unfit(self, observed: str) -> StoreUnfit:
        return StoreUnfit(
            f"{self._store.url} does not enforce write conditions, so work would be lost silently: {observed}. "
            f"{FIT_STORES}"
        )

    def _etag(self) -> str:
        found = self._store.head(self._key)
        if found is None:
            raise ObjectMissing(f"{self._key} is not there yet")
        return found.etag

    def _new_key(self) -> str:
        self._keys.append(f"{PREFIX}{uuid4().hex}.json")
        return self._keys[-1]


def _ask(write: Callable[[bytes], str]) -> _Answer:
    data = _new_data()
    try:
        return _Answer(data=data, etag=write(data))
    except PreconditionFailed:
        return _Answer(data=data, is_refused=True)
    except StoreUnavailable:
        return _Answer(data=data)


def _new_data() -> bytes:
    return uuid4().hex.encode()
