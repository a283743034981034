"""What one pool has to do: the figures an autoscaler decides by. Derived from the queue; decides nothing itself."""

from dataclasses import dataclass

from batchfile.ledger import keys
from batchfile.ledger.batch_status import PoolProgress
from batchfile.ledger.heartbeats import read_presence
from batchfile.ledger.status import DerivedStatus, StatusReader


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """`pending_shards` could be begun by another runner; `pending_requests` have no committed result yet.

    `open_batches` have something left for this pool; `oldest_created_at` is of these, None where there are none.
    """

    pool: str
    pending_shards: int = 0
    pending_requests: int = 0
    leased_shards: int = 0
    live_runners: int = 0
    open_batches: int = 0
    oldest_created_at: float | None = None


def has_waiting(reader: StatusReader, pool: str) -> bool:
    """Does any request wait for the pool? Looks no further than the first. Raises: StoreUnavailable."""
    markers = reader.ledger.store.list(keys.queue_prefix(pool))
    statuses = reader.read_many(keys.queue_batch_id(entry.key) for entry in markers)
    return any(_left(status, pool) is not None for status in statuses)


def _left(status: DerivedStatus, pool: str) -> PoolProgress | None:
    """How far the pool is with the batch, where there is something left to do for it."""
    progress = status.pools.get(pool)
    # A marker may outlive its batch, and what is ending is nobody's work any more.
    if status.batch.state != "open" or progress is None or progress.num_done == progress.num_shards:
        return None
    return progress


def read_scale(reader: StatusReader, pool: str) -> Scale:
    """One look at every batch in the pool's queue. Raises: StoreUnavailable."""
    ledger = reader.ledger
    markers = ledger.store.list(keys.queue_prefix(pool))
    pending_shards = pending_requests = leased_shards = 0
    created: list[float] = []
    for status in reader.read_many(keys.queue_batch_id(entry.key) for entry in markers):
        progress = _left(status, pool)
        if progress is None:
            continue
        pending_shards += progress.num_pending_shards
        pending_requests += progress.num_requests - progress.num_finished
        leased_shards += progress.num_leased
        created.append(status.batch.created_at)
    return Scale(
        pool=pool,
        pending_shards=pending_shards,
        pending_requests=pending_requests,
        leased_shards=leased_shards,
        live_runners=len(read_presence(ledger, pool)),
        open_batches=len(created),
        oldest_created_at=min(created, default=None),
    )
