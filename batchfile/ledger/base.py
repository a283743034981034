"""What every ledger verb needs: the store, a clock, chance, and the written limits of the protocol."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from batchfile.clock import Clock, SystemClock
from batchfile.ledger.records import new_id
from batchfile.store.base import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The protocol's times, in seconds. The defaults are for a bucket; `LOCAL` is for one machine."""

    lease_ttl_s: float = 90.0  # a record not rewritten for this long may be taken
    checkpoint_s: float = 15.0  # how often what has finished is committed; with no news: a sixth of the lease
    grace_s: float = 20.0  # what a stopping runner gives its requests in flight
    engine_stall_s: float = 600.0  # a call of the engine that takes longer counts as its death
    completion_window_s: float = 24 * 3600.0  # an open batch expires
    retention_s: float = 24 * 3600.0  # an ended batch is deleted
    abandoned_s: float = 3600.0  # a create that never committed is swept
    download_grace_s: float = 3600.0  # from `deleted` to the removal of the objects
    tombstone_s: float = 24 * 3600.0  # from `deleted` to the removal of batch.json


LOCAL = Limits(
    checkpoint_s=1.0,
    lease_ttl_s=30.0,
    grace_s=30.0,
    retention_s=30 * 24 * 3600.0,
    completion_window_s=3650 * 24 * 3600.0,
)


IN_FLIGHT = 16  # calls of the store that one verb of a process makes at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """The world as the verbs see it. Everything they touch is in here, so that a test can own all of it.

    >>> ledger = batchfile.Ledger(store=batchfile.open_store("memory:"))
    >>> ledger.limits.lease_ttl_s
    90.0

    `num_in_flight`: the most calls of the store that one verb makes at once, on threads of its own if more than one.
    `owed`: what this process still has to give back, and could not yet; each says whether that is over.
    """

    store: Store
    clock: Clock = field(default_factory=SystemClock)
    rng: Random = field(default_factory=Random)
    limits: Limits = field(default_factory=Limits)
    num_in_flight: int = 1
    owed: deque[Callable[[], bool]] = field(default_factory=deque)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def new_id(self) -> str:
        with self._lock:
            return new_id(self.rng)
