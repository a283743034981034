"""What every operation of the ledger needs: the store, a clock, a source of randomness and the protocol's limits."""

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

    lease_ttl_s: float = 90.0  # a record not rewritten for this long may be claimed by another process
    checkpoint_s: float = 15.0  # how often results are committed; without any, a lease is renewed after 1/6 of its time
    grace_s: float = 20.0  # how long a stopping runner waits for its requests in flight
    engine_stall_s: float = 600.0  # an engine call that takes longer counts as an engine crash
    completion_window_s: float = 24 * 3600.0  # an open batch expires after this
    retention_s: float = 24 * 3600.0  # an ended batch is deleted after this
    abandoned_s: float = 3600.0  # a create that was never committed is removed after this
    download_grace_s: float = 3600.0  # from `deleted` to the removal of the objects
    tombstone_s: float = 24 * 3600.0  # from `deleted` to the removal of batch.json


LOCAL = Limits(
    checkpoint_s=1.0,
    lease_ttl_s=30.0,
    grace_s=30.0,
    retention_s=30 * 24 * 3600.0,
    completion_window_s=3650 * 24 * 3600.0,
)


IN_FLIGHT = 16  # store calls that one operation of a process makes at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Everything that the operations on batches use, so that a test can replace all of it.

    >>> ledger = batchfile.Ledger(store=batchfile.open_store("memory:"))
    >>> ledger.limits.lease_ttl_s
    90.0

    `num_in_flight`: the most store calls that one operation makes at once, on its own threads if more than one.
    `owed`: what this process still has to give back and could not yet; each call says whether that is done.
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
