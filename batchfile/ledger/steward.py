"""Tidies: expires, ends what nobody ended, deletes what is old, sweeps what was never committed.

One pass over the index. Every verb in it may be cut off and repeated, by any number of processes at once.
"""

import structlog

from batchfile import layout
from batchfile.errors import BatchDamaged
from batchfile.ledger import batches
from batchfile.ledger.base import Ledger
from batchfile.ledger.cas import load
from batchfile.records import BatchRecord

log = structlog.get_logger()


def tick(ledger: Ledger, *, runner: str) -> None:
    """One look at every batch in the index. Raises: StoreUnavailable; the next tick begins again."""
    for entry in list(ledger.store.list(layout.INDEX_PREFIX)):
        batch_id = layout.index_batch_id(entry.key)
        try:
            found = load(ledger, layout.batch_key(batch_id), BatchRecord)
            if found is None:
                _sweep_abandoned(ledger, batch_id, entry.key, entry.modified_at)
            else:
                _tend(ledger, found.record, runner)
        except BatchDamaged as error:
            log.error("batch.damaged", batch_id=batch_id, error=str(error))


def _tend(ledger: Ledger, batch: BatchRecord, runner: str) -> None:
    now, limits = ledger.clock.now(), ledger.limits
    if batch.state == "open" and now >= batch.expires_at:
        batches.end(ledger, batch.batch_id, "expired")
        batches.finish(ledger, batch.batch_id, runner=runner)
    elif batch.state in {"open", "ending"}:
        batches.finish(ledger, batch.batch_id, runner=runner)
    elif batch.state == "ended" and batch.ended_at is not None and now >= batch.ended_at + limits.retention_s:
        batches.delete(ledger, batch.batch_id)
    elif batch.state == "deleted" and batch.deleted_at is not None:
        if now >= batch.deleted_at + limits.download_grace_s:
            batches.remove_objects(ledger, batch)
        if now >= batch.deleted_at + limits.tombstone_s:
            batches.remove_tombstone(ledger, batch)


def _sweep_abandoned(ledger: Ledger, batch_id: str, index_key: str, created_at: float) -> None:
    """A create that was cut off before its commit: fenced by a tombstone first, then swept with it."""
    if ledger.clock.now() - created_at < ledger.limits.abandoned_s:
        return
    if batches.fence_abandoned(ledger, batch_id):
        log.info("create.abandoned", batch_id=batch_id)
        ledger.store.delete(index_key)
