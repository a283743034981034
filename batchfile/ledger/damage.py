"""A batch whose `batch.json` cannot be read: what is known about it, and how its owner cancels or deletes it.

Its index entry holds its tenant and creation time. A write replaces exactly the bytes that could not be read, so that
a record that is restored meanwhile is kept. A record of a newer version is not damaged, and is never replaced.
"""

from contextlib import suppress
from dataclasses import replace

import structlog

from batchfile.errors import RecordDamaged
from batchfile.ledger import keys, lease
from batchfile.ledger.base import Ledger
from batchfile.ledger.cas import Lost, load, swap
from batchfile.ledger.records import BatchRecord, LineError, ShardRecord
from batchfile.ledger.retention import not_a_fence, stand_in

log = structlog.get_logger()

DAMAGED = "the stored record of this batch is damaged; cancel or delete it, or ask the operator to restore it"
CANCELED = "the stored record of this batch was damaged when it was canceled: it has no results; submit the file again"


def place_of(ledger: Ledger, tenant: str | None, batch_id: str) -> str | None:
    """Its key in the index if it is a batch of this tenant (None: of any). Costs a listing of the tenant's batches."""
    for entry in ledger.store.list(keys.INDEX_PREFIX if tenant is None else keys.index_prefix(tenant)):
        if keys.index_batch_id(entry.key) == batch_id:
            return entry.key
    return None


def placeholder(place: str, detail: str = DAMAGED) -> BatchRecord:
    """Stands in for an unreadable record in a listing: ended, without results. `place`: its key in the index."""
    created_at = keys.index_created_at(place)
    return replace(
        stand_in(keys.index_batch_id(place), created_at),
        state="ended",
        reason="failed",
        detail=detail,
        tenant=keys.index_tenant(place),
        problems=(LineError(code="damaged", message=detail),),
        ended_at=created_at,
    )


def cancel(ledger: Ledger, damage: RecordDamaged, place: str) -> BatchRecord | None:
    """End the batch, without results, and fence its shards. None: another process has replaced or removed it."""
    now = ledger.clock.now()
    ended = replace(
        placeholder(place, CANCELED), reason="canceled", ending_at=now, ended_at=now, write_id=ledger.new_id()
    )
    written = swap(ledger, keys.batch_key(ended.batch_id), ended, damage)
    if isinstance(written, Lost):
        return None
    log.warning("batch.damaged_canceled", batch_id=ended.batch_id, key=damage.key)
    _fence(ledger, ended.batch_id)
    return written.record


def delete(ledger: Ledger, damage: RecordDamaged, place: str) -> BatchRecord | None:
    """Make the batch unreadable; the janitor frees its space later. None: as `cancel`."""
    now = ledger.clock.now()
    gone = replace(
        not_a_fence(placeholder(place)), state="deleted", reason=None, deleted_at=now, write_id=ledger.new_id()
    )
    written = swap(ledger, keys.batch_key(gone.batch_id), gone, damage)
    if isinstance(written, Lost):
        return None
    log.warning("batch.damaged_deleted", batch_id=gone.batch_id, key=damage.key)
    _fence(ledger, gone.batch_id)
    return written.record


def _fence(ledger: Ledger, batch_id: str) -> None:
    """Close claimed shards: their holders notice at the next checkpoint. A new claim reads `batch.json` itself."""
    for entry in list(ledger.store.list(keys.shards_prefix(batch_id))):
        with suppress(RecordDamaged):  # no runner can hold it
            found = load(ledger, entry.key, ShardRecord)
            while found is not None and found.record.state not in {"done", "closed"}:
                wanted = lease.closed(found.record, lease=ledger.new_id(), reason="canceled")
                written = swap(ledger, entry.key, wanted, found)
                found = written.found if isinstance(written, Lost) else None
