"""When time is up: for a batch that runs, for one that has ended, and for what is to be removed at a known time.

A process whose clock is days off must not expire or remove anything. So what the clock here says is only asked for
first, because that costs nothing; then the store's own clock decides.
"""

from itertools import takewhile

from batchfile.errors import BatchDamaged
from batchfile.ledger import keys
from batchfile.ledger.base import Ledger
from batchfile.ledger.records import BatchRecord
from batchfile.ledger.set_aside import do_each
from batchfile.store.base import Entry


def is_over(ledger: Ledger, batch: BatchRecord) -> bool:
    """Has the batch reached its end without having ended? Raises: StoreUnavailable.

    The clock of whoever created it may have been wrong too: then its window counts from when its index marker was
    written, by the store's clock.
    """
    if ledger.clock.now() < batch.expires_at:
        return False
    marker = ledger.store.get(keys.index_key(batch.tenant, batch.created_at, batch.batch_id))
    if marker is None or marker.read_at < batch.expires_at:
        return False
    return marker.age_s >= batch.expires_at - batch.created_at


def kept_for_s(ledger: Ledger, batch: BatchRecord) -> float:
    """For how many more seconds an ended batch and its results stay; its user may have asked for more than is usual.

    Raises: StoreUnavailable.
    """
    kept_s = max(ledger.limits.retention_s, batch.kept_s or 0.0)
    left_s = (batch.ended_at or batch.created_at) + kept_s - ledger.clock.now()
    if left_s > 0:
        return left_s
    found = ledger.store.get(keys.batch_key(batch.batch_id))  # written last when it ended
    return 0.0 if found is None else max(0.0, kept_s - found.age_s)


def remove_after(ledger: Ledger, prefix: str, seconds: float) -> None:
    """Everything under `prefix` goes soon after `seconds` from now. Written before what it is for."""
    key = keys.expiring_key(ledger.clock.now() + seconds, prefix)
    ledger.store.put(key, f"{seconds:.0f}".encode())


def sweep(ledger: Ledger) -> int:
    """Remove what is due; how many prefixes. Cut off, it is done again by the next. One that is ill holds up no other.

    Raises: StoreUnavailable.
    """
    now = ledger.clock.now()

    def remove(entry: Entry) -> bool:
        marker = ledger.store.get(entry.key)
        if marker is None or marker.age_s < _seconds(entry.key, marker.data):
            return False
        ledger.store.delete_many([found.key for found in ledger.store.list(keys.expiring_prefix(entry.key))])
        ledger.store.delete(entry.key)
        return True

    entries = list(ledger.store.list(keys.EXPIRING_PREFIX))
    return do_each(takewhile(lambda entry: keys.expiring_at(entry.key) <= now, entries), remove, "expiry.failed")


def _seconds(key: str, data: bytes) -> float:
    try:
        return float(data or 0)
    except ValueError:
        raise BatchDamaged(f"{key}: holds no number of seconds; remove it, and what it is for stays") from None
