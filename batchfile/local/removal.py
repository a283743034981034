"""What goes with a run that is thrown away, in whatever state it is: nobody works on it, the output's lock is ours."""

from dataclasses import replace

from batchfile.errors import RecordDamaged
from batchfile.ledger import batches, damage, keys
from batchfile.ledger.base import Ledger
from batchfile.ledger.cas import update_batch
from batchfile.ledger.records import BatchRecord
from batchfile.types import TENANT

POOL = "local"
CUT_OFF = "its run was cut off, and another one took its output"


def throw_away(ledger: Ledger, batch_id: str) -> None:
    """Remove a batch whatever its state: nobody works on it, the output's lock is ours."""
    now = ledger.clock.now()

    def decide(record: BatchRecord) -> BatchRecord | None:
        return None if record.state == "deleted" else replace(record, state="deleted", deleted_at=now)

    try:
        found = update_batch(ledger, keys.batch_key(batch_id), decide)
    except RecordDamaged:
        _remove_damaged(ledger, batch_id)
        return
    if found is None:
        batches.fence(ledger, batch_id, CUT_OFF)
        return
    record = found.record
    ledger.store.delete(keys.queue_key(POOL, record.priority, record.created_at, batch_id))
    batches.remove_objects(ledger, record)
    batches.remove_tombstone(ledger, record)


def _remove_damaged(ledger: Ledger, batch_id: str) -> None:
    """Its record says nothing any more; its id is in the keys of its markers."""
    for entry in list(ledger.store.list(keys.queue_prefix(POOL))):
        if keys.queue_batch_id(entry.key) == batch_id:
            ledger.store.delete(entry.key)
    remove_unborn(ledger, batch_id)
    place = damage.place_of(ledger, TENANT, batch_id)
    if place is not None:
        ledger.store.delete(place)


def remove_unborn(ledger: Ledger, batch_id: str) -> None:
    """What was written for a batch that was refused before its commit: nobody knows its id."""
    for entry in list(ledger.store.list(keys.batch_prefix(batch_id))):
        ledger.store.delete(entry.key)
