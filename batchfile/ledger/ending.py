"""Ends batches: closes their shards, assembles their files and commits the end, in whichever process is first.

Can be interrupted anywhere and called again.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

import structlog

from batchfile import tracing
from batchfile.errors import BatchDamaged, BatchfileError, LeaseLost, RecordDamaged, RecordNewer, StoreError
from batchfile.ledger import keys, shards
from batchfile.ledger.assemble import Assembled, Records, Shard, assemble
from batchfile.ledger.base import Ledger
from batchfile.ledger.batches import attributes_of, queue_entries, read_batch, read_plan
from batchfile.ledger.cas import Stored, load, update_batch
from batchfile.ledger.parallel import in_order
from batchfile.ledger.records import BatchRecord, Plan, ShardRecord

log = structlog.get_logger()


def finish(
    ledger: Ledger, batch_id: str, *, runner: str, is_stopped: Callable[[], bool] = lambda: False
) -> BatchRecord | None:
    """End a batch whose shards are all done, or that is ending: close, assemble, commit, clean up.

    Returns the ended record; None if it cannot end yet, another process is ending it, or `is_stopped` (checked between
    ranges) was true. Raises: BatchDamaged.
    """
    batch = read_batch(ledger, batch_id)
    if batch is None or batch.state == "ended":
        return batch
    if not batch.plan_key:  # none of it ran
        return _end_without_results(ledger, batch_id)
    # While one process ends a batch, all others keep asking whether it has ended, so this check must be cheap.
    if shards.is_held(ledger, keys.assembly_key(batch_id)):
        return None
    try:
        plan = read_plan(ledger, batch)
    except BatchDamaged as error:  # without the plan, its lines are unknown
        if batch.state != "ending" or not _is_lost(ledger, batch.plan_key, error):
            raise
        log.error("plan.lost", batch_id=batch_id, error=str(error))
        return _end_without_results(ledger, batch_id, "the stored plan of this batch is lost, and its results with it")
    # One listing, before anything is written for an incomplete batch.
    written_at = {entry.key: entry.modified_at for entry in ledger.store.list(keys.shards_prefix(batch_id))}
    if batch.state == "open" and not _is_begun(plan, written_at):
        return None
    held = shards.claim_task(ledger, batch, keys.assembly_key(batch_id), keys.ASSEMBLY_POOL, runner=runner)
    made = None if held is None else _assemble(ledger, held, plan, written_at, is_stopped)
    return None if made is None else _conclude(ledger, batch, plan, made)


def _conclude(ledger: Ledger, batch: BatchRecord, plan: Plan, made: Assembled) -> BatchRecord | None:
    """Commit the end. Only the process that commits it cleans up."""
    ended = _commit_end(ledger, batch, plan, made)
    if ended is None or ended.results != made.results:
        _discard(ledger, made)
        return ended
    with suppress(StoreError):  # retention removes what is left
        sweep_parts(ledger, ended)
    return ended


def _assemble(
    ledger: Ledger,
    held: shards.Lease,
    plan: Plan,
    written_at: dict[str, float],
    is_stopped: Callable[[], bool],
) -> Assembled | None:
    """None if a shard is not done yet, or another process is assembling the batch or has ended it."""
    beat = shards.beating(ledger, held, is_stopped)
    try:
        batch = read_batch(ledger, held.batch.batch_id)  # the current record, now that this process holds the task
        if batch is None or batch.state == "ended":
            return None
        if batch.state == "ending":
            records: Records | None = close_all(ledger, batch, plan, beat)
        else:
            records = final_records(ledger, batch, plan, beat)
        if records is not None:
            nonce = ledger.new_id()[:12]
            with tracing.span("batchfile.assemble", attributes_of(batch), of=batch.traceparent):
                return assemble(ledger, batch, plan, records, written_at=written_at, nonce=nonce, beat=beat)
    except LeaseLost:
        return None
    except shards.TaskStopped:
        shards.give_back(ledger, held)
        return None
    except BatchfileError:
        shards.give_back(ledger, held)
        raise
    shards.give_back(ledger, held)
    return None


def _discard(ledger: Ledger, made: Assembled) -> None:
    """Remove files that no record names, because the batch has other files or is gone. Best effort."""
    with suppress(StoreError):
        made_files = (made.results, made.errors, made.reasons)
        ledger.store.delete_many([file.key for file in made_files if file is not None])


def _end_without_results(ledger: Ledger, batch_id: str, detail: str | None = None) -> BatchRecord | None:
    """End an ending batch, with `detail` if given. None if it is not ending."""
    now = ledger.clock.now()

    def decide(record: BatchRecord) -> BatchRecord | None:
        ended = replace(record, state="ended", ended_at=now, detail=detail or record.detail)
        return ended if record.state == "ending" else None

    found = update_batch(ledger, keys.batch_key(batch_id), decide)
    if found is None or found.record.state != "ended":
        return None
    log.info("batch.ended", batch_id=batch_id, reason=found.record.reason, total=found.record.total)
    return found.record


def _is_lost(ledger: Ledger, key: str, error: BatchDamaged) -> bool:
    """Is the object at `key` gone, or damaged for good? Asked with a different request, because something that answers
    in place of the store does not know the etag of its answer. Raises: StoreError.
    """
    if isinstance(error, RecordNewer):
        return False
    entry = ledger.store.head(key)
    return (entry and entry.etag) == (error.etag if isinstance(error, RecordDamaged) else None)


def _commit_end(ledger: Ledger, batch: BatchRecord, plan: Plan, made: Assembled) -> BatchRecord | None:
    now = ledger.clock.now()

    def decide(record: BatchRecord) -> BatchRecord | None:
        if record.state not in {"open", "ending"}:
            return None
        return replace(
            record,
            state="ended",
            reason=record.reason or "completed",
            ended_at=now,
            results=made.results,
            errors=made.errors,
            reasons=made.reasons,
            counts=made.counts,
            usage=made.usage,
            failures=made.failures,
            gpu_s=made.gpu_s,
            fingerprints=made.fingerprints,
            profile=made.profile,
        )

    ended = update_batch(ledger, keys.batch_key(batch.batch_id), decide)
    if ended is None:
        return None
    ledger.store.delete_many(list(queue_entries(batch, plan)))
    log.info("batch.ended", batch_id=batch.batch_id, reason=ended.record.reason, total=batch.total)
    return ended.record


def sweep_parts(ledger: Ledger, batch: BatchRecord) -> None:
    """Remove what an ended batch does not name: parts, ids, and files of assemblies that lost the race."""
    keep = {ref.key for ref in (batch.results, batch.errors, batch.reasons) if ref is not None}
    found = [entry.key for entry in ledger.store.list(keys.parts_prefix(batch.batch_id))]
    for stem in ("results-", "errors-", "reasons-", "custom-ids-"):
        found += [entry.key for entry in ledger.store.list(keys.batch_prefix(batch.batch_id) + stem)]
    ledger.store.delete_many([key for key in found if key not in keep])


def close_all(ledger: Ledger, batch: BatchRecord, plan: Plan, beat: Callable[[], None] = lambda: None) -> Records:
    """Fence every shard of an ending batch, also those that were never claimed: one write each. Returns their records.

    Calls `beat` between them.
    """
    reason = batch.reason or "failed"
    begun = {entry.key for entry in ledger.store.list(keys.shards_prefix(batch.batch_id))}

    def close(shard: Shard) -> ShardRecord:
        is_new = keys.shard_key(batch.batch_id, *shard) not in begun
        return shards.close(ledger, batch.batch_id, plan, *shard, reason=reason, is_new=is_new)

    records: Records = {}
    members = list(_shards_of(plan))
    for shard, record in zip(members, in_order(ledger, close, members), strict=True):
        beat()
        records[shard] = record
    return records


def final_records(
    ledger: Ledger, batch: BatchRecord, plan: Plan, beat: Callable[[], None] = lambda: None
) -> Records | None:
    """Each shard's final record; None if a shard is not done yet. Calls `beat` between them."""

    def read(shard: Shard) -> Stored[ShardRecord] | None:
        return load(ledger, keys.shard_key(batch.batch_id, *shard), ShardRecord)

    records: Records = {}
    members = list(_shards_of(plan))
    for shard, found in zip(members, in_order(ledger, read, members), strict=True):
        beat()
        if found is None or found.record.state not in {"done", "closed"}:
            return None
        records[shard] = found.record
    return records


def _is_begun(plan: Plan, written_at: dict[str, float]) -> bool:
    """Does every shard have a record?"""
    return len(written_at) >= sum(1 for _ in _shards_of(plan))


def _shards_of(plan: Plan) -> Iterator[Shard]:
    """In input order, as they are assembled."""
    return ((pool, n) for n in range(len(plan.ranges)) for pool, members in plan.pools.items() if n in members)
