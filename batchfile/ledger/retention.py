"""How long stored data is kept, and how it is removed: of open batches, ended ones and abandoned creates.

A process whose clock is days off must not expire or remove anything. So the local clock, which costs nothing, is only
asked first; then the store's clock decides.

A deleted batch leaves a tombstone with its id, tenant and creation time until `tombstone_s`. It protects against a slow
create of the same id, a runner that slept and listing cursors that point to it.
"""

from dataclasses import replace
from itertools import takewhile

import structlog

from batchfile.errors import BatchDamaged
from batchfile.ledger import keys
from batchfile.ledger.base import Ledger
from batchfile.ledger.cas import Lost, swap, update_batch
from batchfile.ledger.records import BatchRecord, InputRef
from batchfile.ledger.set_aside import do_each
from batchfile.store.base import Entry
from batchfile.types import Defaults, RoutingTable

log = structlog.get_logger()


def is_over(ledger: Ledger, batch: BatchRecord) -> bool:
    """Is the open batch past its deadline? Raises: StoreUnavailable.

    The clock of the process that created it may have been wrong too: then the window counts from when the index entry
    was written, by the store's clock.
    """
    if ledger.clock.now() < batch.expires_at:
        return False
    found = ledger.store.get(keys.index_key(batch.tenant, batch.created_at, batch.batch_id))
    if found is None or found.read_at < batch.expires_at:
        return False
    return found.age_s >= batch.expires_at - batch.created_at


def kept_for_s(ledger: Ledger, batch: BatchRecord) -> float:
    """For how many more seconds an ended batch and its results are kept; its user may have asked for longer.

    Raises: StoreUnavailable.
    """
    return left_of_s(ledger, batch, max(ledger.limits.retention_s, batch.kept_s or 0.0))


def left_of_s(ledger: Ledger, batch: BatchRecord, kept_s: float) -> float:
    """How much is left of `kept_s` seconds after the batch ended. 0 only if the store's clock agrees.

    Raises: StoreUnavailable.
    """
    left_s = (batch.ended_at or batch.created_at) + kept_s - ledger.clock.now()
    if left_s > 0:
        return left_s
    found = ledger.store.get(keys.batch_key(batch.batch_id))  # its last write is the one that ended it
    return 0.0 if found is None else max(0.0, kept_s - found.age_s)


def remove_after(ledger: Ledger, prefix: str, seconds: float) -> None:
    """Remove everything under `prefix` soon after `seconds` from now. Call this before the prefix is written."""
    key = keys.expiring_key(ledger.clock.now() + seconds, prefix)
    ledger.store.put(key, f"{seconds:.0f}".encode())


def sweep(ledger: Ledger) -> int:
    """Remove what is due; returns how many prefixes. An interrupted removal is repeated by the next call. An entry that
    fails does not hold up the others.

    Raises: StoreUnavailable.
    """
    now = ledger.clock.now()

    def remove(entry: Entry) -> bool:
        stored = ledger.store.get(entry.key)
        if stored is None or stored.age_s < _seconds(entry.key, stored.data):
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
        raise BatchDamaged(f"{key}: is not a number of seconds; delete it to keep the data that it names") from None


def delete(ledger: Ledger, batch_id: str) -> BatchRecord | None:
    """Make an ended batch unreadable at once; `remove_objects` frees the space later."""
    now = ledger.clock.now()

    def decide(record: BatchRecord) -> BatchRecord | None:
        return replace(record, state="deleted", deleted_at=now) if record.state == "ended" else None

    found = update_batch(ledger, keys.batch_key(batch_id), decide)
    return None if found is None else found.record


def remove_objects(ledger: Ledger, batch: BatchRecord) -> None:
    """Remove everything of a deleted batch but its tombstone."""
    tombstone = keys.batch_key(batch.batch_id)
    found = [entry.key for entry in ledger.store.list(keys.batch_prefix(batch.batch_id))]
    ledger.store.delete_many([key for key in found if key != tombstone])


def fence_abandoned(ledger: Ledger, batch_id: str) -> bool:
    """As `fence`, for a create that shows no sign of life."""
    minutes = ledger.limits.abandoned_s / 60
    return fence(ledger, batch_id, f"its create was abandoned after {minutes:.0f} minutes without a sign of life")


def fence(ledger: Ledger, batch_id: str, why: str) -> bool:
    """Make sure that an uncommitted create is never committed, then free its space. False: the batch exists, or did.

    `why` is what the create is told if it was only slow.
    """
    now = ledger.clock.now()
    tombstone = replace(stand_in(batch_id, now), state="deleted", detail=why, deleted_at=now, write_id=ledger.new_id())
    if isinstance(swap(ledger, keys.batch_key(batch_id), tombstone, None), Lost):
        return False
    ledger.store.put(keys.index_key(tombstone.tenant, now, batch_id), b"")
    remove_objects(ledger, tombstone)
    return True


def is_fence(record: BatchRecord) -> bool:
    """Does the record stand for an abandoned create, so that there never was such a batch?"""
    return record.state == "deleted" and not record.input.key


def remove_tombstone(ledger: Ledger, batch: BatchRecord) -> None:
    """Remove the last trace. The index entry goes last, so that an interrupted removal is found again."""
    ledger.store.delete(keys.batch_key(batch.batch_id))
    ledger.store.delete(keys.index_key(batch.tenant, batch.created_at, batch.batch_id))


def purge(ledger: Ledger, batch_id: str) -> BatchRecord | None:
    """Remove everything of a deleted batch. It can be interrupted and called again. None: no trace of it is left.

    Another batch, or one that is not deleted, is left as it is. Raises: StoreError.
    """

    def decide(record: BatchRecord) -> BatchRecord | None:
        bare = _bare(record)
        # A fence has no data, and must remain recognizable as a fence.
        return None if record.state != "deleted" or is_fence(record) or bare == record else bare

    found = update_batch(ledger, keys.batch_key(batch_id), decide)
    if found is None:
        return None
    if found.record.state == "deleted":
        remove_objects(ledger, found.record)
        log.info("batch.purged", batch_id=batch_id)
    return found.record


def _bare(record: BatchRecord) -> BatchRecord:
    """Without anything that its user sent: file names, metadata, digests, messages and figures."""
    return replace(
        not_a_fence(stand_in(record.batch_id, record.created_at)),
        expires_at=record.expires_at,
        state=record.state,
        reason=record.reason,
        tenant=record.tenant,
        priority=record.priority,
        planned_at=record.planned_at,
        ending_at=record.ending_at,
        ended_at=record.ended_at,
        deleted_at=record.deleted_at,
        seq=record.seq,
        write_id=record.write_id,
    )


def stand_in(batch_id: str, created_at: float) -> BatchRecord:
    """A record of which only the id and the creation time are known, or are to be kept."""
    return BatchRecord(
        batch_id=batch_id,
        created_at=created_at,
        expires_at=created_at,
        input=InputRef(key="", etag="", size=0, sha256="", format="native"),
        plan_key="",
        total=0,
        routing=RoutingTable(),
        defaults=Defaults(),
        seq=1,
    )


def not_a_fence(record: BatchRecord) -> BatchRecord:
    """With an input key: a deleted record without one is the fence of an abandoned create."""
    return replace(record, input=replace(record.input, key=keys.batch_prefix(record.batch_id)))
