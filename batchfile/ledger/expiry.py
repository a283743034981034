"""What is to be removed at a time that is known beforehand: a marker for each, found without reading anything else."""

from batchfile import layout
from batchfile.ledger.base import Ledger


def expire(ledger: Ledger, prefix: str, at: float) -> None:
    """Everything under `prefix` goes soon after `at` (epoch seconds). Written before what it is for."""
    ledger.store.put(layout.expiring_key(at, prefix), b"")


def sweep_expired(ledger: Ledger) -> int:
    """Remove what is due; how many prefixes. Cut off, it is done again by the next. Raises: StoreUnavailable."""
    now = ledger.clock.now()
    num = 0
    for marker in list(ledger.store.list(layout.EXPIRING_PREFIX)):
        if layout.expiring_at(marker.key) > now:
            break
        for entry in list(ledger.store.list(layout.expiring_prefix(marker.key))):
            ledger.store.delete(entry.key)
        ledger.store.delete(marker.key)
        num += 1
    return num
