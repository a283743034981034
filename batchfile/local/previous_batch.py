"""Replaces the batch of an output: takes over its results if lines were added to its input, else removes it.

The finished results become results of a new batch of the whole file. The pointer of the output names both batches until
the new one is committed, so that a process may die at any point. The caller holds the lock of the output.
"""

from collections.abc import Mapping
from dataclasses import replace

from batchfile.errors import RecordDamaged, StoreUnavailable
from batchfile.ledger import batches, damage, ending, keys, retention
from batchfile.ledger.base import Ledger
from batchfile.ledger.cas import Lost, Stored, swap, update_batch
from batchfile.ledger.records import BatchRecord, IdempotencyRecord
from batchfile.local import options
from batchfile.local.inputs import Source, begins_with
from batchfile.types import TENANT

POOL = "local"
CUT_OFF = "its run was interrupted, and another one replaced it"
DETAIL = "lines were added to its input; another batch has taken over its results"
_TRIES = 90  # to end a batch that another process may hold: one a second, for longer than a lease


def is_reusable(source: Source, batch: BatchRecord, wanted: Mapping[str, str]) -> bool:
    """Does the run have the same options, and does its input extend that of the batch?

    Also true for the same input, if a change of it had ended the batch.
    """
    is_grown = batch.metadata.get(options.SHA256) != wanted[options.SHA256]
    if not is_grown and batch.reason != "input_changed":
        return False
    if not source.is_repeatable or not options.is_same_but_for_input(batch.metadata, wanted):
        return False
    if batch.state == "ended" and batch.results is None:
        return False
    return begins_with(source, batch.input.size, batch.input.sha256)


def end(ledger: Ledger, batch: BatchRecord) -> BatchRecord:
    """End it with its finished results, so that these can be read. Raises: StoreUnavailable, BatchDamaged."""
    batches.end(ledger, batch.batch_id, "input_changed", DETAIL)
    runner = f"local-{ledger.new_id()[:12]}-opening"
    with ledger.store.hold_process_lock(runner):
        for _ in range(_TRIES):
            ended = ending.finish(ledger, batch.batch_id, runner=runner)
            if ended is not None and ended.results is not None:
                return ended
            ledger.clock.sleep(1.0)
    raise StoreUnavailable(f"{batch.batch_id} could not be ended: another process holds it; run the command again")


def repaired(ledger: Ledger, key: str, pointer: Stored[IdempotencyRecord]) -> Stored[IdempotencyRecord]:
    """Repair the pointer of an output after a process was killed while it replaced the batch: it names one batch again,
    the new one if that was committed.
    """
    record = pointer.record
    if record.digest:
        return pointer
    try:
        made = batches.read_batch(ledger, record.batch_id)
        old = batches.read_batch(ledger, record.replaces) if record.replaces else None
    except RecordDamaged:
        return pointer  # the next read reports it
    if made is not None:
        if old is not None:
            throw_away(ledger, old.batch_id)
        wanted = replace(record, digest=made.input.sha256, replaces="")
    elif record.replaces:
        retention.fence(ledger, record.batch_id, CUT_OFF)
        wanted = IdempotencyRecord(batch_id=record.replaces, digest="" if old is None else old.input.sha256)
    else:
        return pointer
    written = swap(ledger, key, wanted, pointer)
    return pointer if isinstance(written, Lost) else written


def throw_away(ledger: Ledger, batch_id: str) -> None:
    """Remove a batch in any state; no process works on it."""
    now = ledger.clock.now()

    def decide(record: BatchRecord) -> BatchRecord | None:
        return None if record.state == "deleted" else replace(record, state="deleted", deleted_at=now)

    try:
        found = update_batch(ledger, keys.batch_key(batch_id), decide)
    except RecordDamaged:
        _remove_damaged(ledger, batch_id)
        return
    if found is None:
        retention.fence(ledger, batch_id, CUT_OFF)
        return
    record = found.record
    ledger.store.delete(keys.queue_key(POOL, record.priority, record.created_at, batch_id))
    retention.remove_objects(ledger, record)
    retention.remove_tombstone(ledger, record)


def _remove_damaged(ledger: Ledger, batch_id: str) -> None:
    """Remove a batch whose record cannot be read, by the keys of its index and queue entries."""
    for entry in list(ledger.store.list(keys.queue_prefix(POOL))):
        if keys.queue_batch_id(entry.key) == batch_id:
            ledger.store.delete(entry.key)
    for entry in list(ledger.store.list(keys.batch_prefix(batch_id))):
        ledger.store.delete(entry.key)
    place = damage.place_of(ledger, TENANT, batch_id)
    if place is not None:
        ledger.store.delete(place)
