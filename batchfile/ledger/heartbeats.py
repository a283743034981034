"""The live runners and the load of a pool: the figures for people, autoscalers and dashboards.

Each runner rewrites its own document every few seconds. That is a hint: no claim depends on it. Ages are by the store's
clock. What waits for a pool is derived from the queue. Nothing is decided here.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from batchfile.errors import BatchDamaged, StoreError
from batchfile.ledger import keys
from batchfile.ledger.base import Ledger
from batchfile.ledger.batch_status import Pool, PoolProgress
from batchfile.ledger.records import HeartbeatRecord, decode, encode
from batchfile.ledger.set_aside import UNANSWERED_MAX
from batchfile.ledger.status import BatchSnapshot, StatusReader
from batchfile.store.base import Entry

HEARTBEAT_AGE_S_MAX = 60.0  # a document not rewritten for this long belongs to no live runner
SWEEP_AFTER_S = 24 * 3600.0
FRESH_S = 3.0  # any number of dashboards and probes cause one read in this time

T = TypeVar("T")


def write_heartbeat(ledger: Ledger, record: HeartbeatRecord) -> None:
    """Raises: StoreError, which the caller may ignore."""
    ledger.store.put(keys.heartbeat_key(record.pool, record.runner_id), encode(record))


def remove_heartbeat(ledger: Ledger, pool: str, runner_id: str) -> None:
    """On a clean exit. Best effort: a document that is left is ignored after a minute."""
    with suppress(StoreError):
        ledger.store.delete(keys.heartbeat_key(pool, runner_id))


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """When the last of a pool's runners wrote its heartbeat, and how many there are of the last day, live or not."""

    at: float
    num_runners: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Roster:
    """The runners at `read_at`, by the store's clock. `live`: by pool and id."""

    live: tuple[HeartbeatRecord, ...]
    last_seen: dict[str, Seen]
    read_at: float


def read_heartbeats(ledger: Ledger, pool: str | None = None) -> list[HeartbeatRecord]:
    """The live runners, by pool and id. Costs and raises: as `read_roster`."""
    return list(read_roster(ledger, pool).live)


def read_roster(ledger: Ledger, pool: str | None = None) -> Roster:
    """Of one pool, or of all. Costs a listing and a read for each live runner.

    Leaves out runners whose document cannot be read. Raises: StoreError where none can be read.
    """
    found, refusals = list[HeartbeatRecord](), list[StoreError]()
    store_now = float("-inf")
    entries = _newest_first(ledger, pool)
    for entry in entries:
        if store_now - entry.modified_at > HEARTBEAT_AGE_S_MAX:
            break
        try:
            document = ledger.store.get(entry.key)
        except StoreError as error:
            refusals.append(error)
            if len(refusals) == UNANSWERED_MAX and not found:
                break
            continue
        if document is None:
            continue
        store_now = max(store_now, document.read_at)
        if document.age_s <= HEARTBEAT_AGE_S_MAX:
            with suppress(BatchDamaged):  # written by a newer version, or not a heartbeat at all
                found.append(decode(document.data, HeartbeatRecord))
    if refusals and not found:
        raise refusals[0]
    num = Counter(keys.heartbeat_pool(entry.key) for entry in entries)
    newest = {keys.heartbeat_pool(entry.key): entry.modified_at for entry in reversed(entries)}
    return Roster(
        live=tuple(sorted(found, key=lambda record: (record.pool, record.runner_id))),
        last_seen={name: Seen(at=at, num_runners=num[name]) for name, at in newest.items()},
        read_at=store_now if store_now > 0 else ledger.clock.now(),
    )


def sweep_heartbeats(ledger: Ledger) -> int:
    """Remove what killed runners left behind a day ago; returns how many. Raises: StoreUnavailable."""
    entries = _newest_first(ledger, None)
    newest = ledger.store.get(entries[0].key) if entries else None
    if newest is None:
        return 0
    old = [entry for entry in entries if newest.read_at - entry.modified_at > SWEEP_AFTER_S]
    for entry in old:
        ledger.store.delete(entry.key)
    return len(old)


def _newest_first(ledger: Ledger, pool: str | None) -> list[Entry]:
    entries = ledger.store.list(keys.heartbeat_prefix(pool))
    return sorted(entries, key=lambda entry: entry.modified_at, reverse=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """`pending_shards`: another runner could start them. `pending_requests`: without a committed result.

    `open_batches`: with work left for this pool. `oldest_created_at`: of these batches; None without any.
    """

    pool: str
    pending_shards: int = 0
    pending_requests: int = 0
    leased_shards: int = 0
    live_runners: int = 0
    open_batches: int = 0
    oldest_created_at: float | None = None


def known_pools(ledger: Ledger, roster: Roster) -> set[str]:
    """Those of which the store knows: a batch waits for them, or a runner had a heartbeat within the last day.

    Raises: StoreUnavailable.
    """
    queued = {keys.queue_pool(entry.key) for entry in ledger.store.list(keys.QUEUE_PREFIX)}
    return queued | {runner.pool for runner in roster.live} | set(roster.last_seen)


def pool_of(
    name: str, model: str, engine: str, stages: Sequence[str], runners: Iterable[HeartbeatRecord], scale: Scale
) -> Pool:
    """`model`, `engine` and `stages`: of the settings, or empty. `runners`: the live ones, of all pools."""
    live = [runner for runner in runners if runner.pool == name]
    return Pool(
        name=name,
        model=model or ", ".join(sorted({runner.model for runner in live})),
        # Prefer what live runners report, because they have their own settings.
        engine=", ".join(sorted({runner.engine for runner in live})) or engine,
        stages=list(stages),
        runners=Counter(runner.state for runner in live),
        open_batches=scale.open_batches,
        pending_requests=scale.pending_requests,
    )


def has_waiting(reader: StatusReader, pool: str) -> bool:
    """Does any request wait for the pool? Stops at the first. Raises: StoreUnavailable."""
    entries = reader.ledger.store.list(keys.queue_prefix(pool))
    snapshots = reader.read_many(keys.queue_batch_id(entry.key) for entry in entries)
    return any(_left(snapshot, pool) is not None for snapshot in snapshots)


def _left(snapshot: BatchSnapshot, pool: str) -> PoolProgress | None:
    """The pool's progress on the batch, if there is work left for it."""
    progress = snapshot.status.pools.get(pool)
    # A queue entry may outlive its batch, and an ending batch is not work for runners.
    if snapshot.batch.state != "open" or progress is None or progress.num_done == progress.num_shards:
        return None
    return progress


def read_scale(reader: StatusReader, pool: str) -> Scale:
    """Looks once at every batch in the pool's queue. Raises: StoreUnavailable."""
    ledger = reader.ledger
    entries = ledger.store.list(keys.queue_prefix(pool))
    pending_shards = pending_requests = leased_shards = 0
    created: list[float] = []
    for snapshot in reader.read_many(keys.queue_batch_id(entry.key) for entry in entries):
        progress = _left(snapshot, pool)
        if progress is None:
            continue
        pending_shards += progress.num_pending_shards
        pending_requests += progress.num_requests - progress.num_finished
        leased_shards += progress.num_leased
        created.append(snapshot.batch.created_at)
    return Scale(
        pool=pool,
        pending_shards=pending_shards,
        pending_requests=pending_requests,
        leased_shards=leased_shards,
        live_runners=len(read_heartbeats(ledger, pool)),
        open_batches=len(created),
        oldest_created_at=min(created, default=None),
    )


class Kept(Generic[T]):
    """Caches the result of `look`. Concurrent callers wait for one call of it."""

    def __init__(self, look: Callable[[], T]) -> None:
        self._look = look
        self._lock = threading.Lock()
        self._found: T | None = None
        self._looked_at = float("-inf")

    def now(self) -> T:
        with self._lock:
            if self._found is None or time.monotonic() - self._looked_at >= FRESH_S:
                self._found = self._look()
                self._looked_at = time.monotonic()
            return self._found
