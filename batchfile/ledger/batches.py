"""The verbs of a batch: create, end, finish, delete. Each may be cut off anywhere and called again.

`create` commits with one conditional write, last. `end` and `finish` are done by whoever comes first.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace

import structlog

from batchfile.errors import BatchDamaged, BatchfileError, LeaseLost, RecordDamaged, RecordNewer, StoreError
from batchfile.ledger import keys, shards
from batchfile.ledger.assemble import Assembled, Records, Shard, assemble
from batchfile.ledger.base import Ledger
from batchfile.ledger.cas import Lost, Stored, load, swap, update_batch
from batchfile.ledger.parallel import in_order
from batchfile.ledger.records import BatchRecord, EndReason, InputRef, Plan, ShardRecord
from batchfile.types import TENANT, Defaults, RoutingTable

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A batch that is about to be created. `created_at` None: when it is committed.

    `deadline`: when it expires, in epoch seconds; None: after the completion window.
    """

    batch_id: str
    routing: RoutingTable
    defaults: Defaults
    stage: str | None = None
    priority: int = 5
    tenant: str = TENANT
    metadata: dict[str, str] = field(default_factory=dict)
    created_at: float | None = None
    deadline: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A planned input, everything but its commit stored. `num_rejected` counts the lines that will not run."""

    input: InputRef
    plan: Plan
    plan_key: str
    total: int
    num_rejected: int
    first_problem: str | None = None
    num_hints: int = 0
    num_reused: int = 0


def announce(ledger: Ledger, draft: Draft) -> None:
    """Before anything of a batch is written: the janitor will sweep it, should it never be committed.

    Again from time to time while that lasts: a create of which nothing was heard for `abandoned_s` is given up.
    """
    ledger.store.put(_index_key(draft), b"")


def withdraw(ledger: Ledger, draft: Draft) -> None:
    """An announced batch was refused. Best effort: the janitor does it too."""
    with suppress(StoreError):
        ledger.store.delete(_index_key(draft))


def _index_key(draft: Draft) -> str:
    assert draft.created_at is not None, "what is announced has a time"
    return keys.index_key(draft.tenant, draft.created_at, draft.batch_id)


def create(ledger: Ledger, draft: Draft, planned: Planned) -> BatchRecord:
    """Make a planned batch exist. Nothing runs before the last write; a crash before it leaves only garbage.

    The same draft again after a lost answer finds its own batch, and one that another writer committed meanwhile
    stands. Raises: StoreUnavailable; BatchDamaged where a batch of other requests has this id, or it was fenced.
    """
    now = ledger.clock.now() if draft.created_at is None else draft.created_at
    record = BatchRecord(
        batch_id=draft.batch_id,
        created_at=now,
        expires_at=draft.deadline or now + ledger.limits.completion_window_s,
        input=planned.input,
        plan_key=planned.plan_key,
        total=planned.total,
        routing=draft.routing,
        defaults=draft.defaults,
        stage=draft.stage,
        priority=draft.priority,
        tenant=draft.tenant,
        metadata=draft.metadata,
        seq=1,
        write_id=ledger.new_id(),
    )
    enqueue(ledger, record, planned.plan)
    ledger.store.put(keys.index_key(draft.tenant, now, draft.batch_id), b"")
    written = swap(ledger, keys.batch_key(draft.batch_id), record, None)
    if isinstance(written, Lost):
        return _standing(record, written)
    notify(ledger, planned.plan.pools)
    log.info("batch.created", batch_id=draft.batch_id, requests=planned.total, pools=sorted(planned.plan.pools))
    return written.record


def _standing(ours: BatchRecord, lost: Lost[BatchRecord]) -> BatchRecord:
    """The record that another writer of the same create committed."""
    found = None if lost.found is None else lost.found.record
    what = (ours.tenant, ours.stage, ours.created_at, ours.input.sha256)
    if found is None or (found.tenant, found.stage, found.created_at, found.input.sha256) != what:
        raise taken(ours.batch_id, found)
    return found


def taken(batch_id: str, found: BatchRecord | None) -> BatchDamaged:
    """Why a create can not have its id: what is found there is of no create like it."""
    if found is not None and is_fence(found):
        return BatchDamaged(f"{batch_id} was never made: {found.detail}; send this one again")
    return BatchDamaged(f"another batch {batch_id} exists already, or did; send this one again")


def enqueue(ledger: Ledger, batch: BatchRecord, plan: Plan) -> None:
    """Put it into the queues; runners pass over it until it is open."""
    for key in _queue_entries(batch, plan):
        ledger.store.put(key, b"")


def notify(ledger: Ledger, pools: Iterable[str]) -> None:
    """Tell idle runners that something changed. A hint: they look by themselves, only later."""
    for pool in pools:
        if pool not in keys.SETTLED_POOLS:
            with suppress(StoreError):
                ledger.store.put(keys.notification_key(pool), ledger.new_id().encode())


def read_batch(ledger: Ledger, batch_id: str) -> BatchRecord | None:
    found = load(ledger, keys.batch_key(batch_id), BatchRecord)
    return None if found is None or found.record.state == "deleted" else found.record


def read_plan(ledger: Ledger, batch: BatchRecord) -> Plan:
    found = load(ledger, batch.plan_key, Plan)
    if found is None:
        raise BatchDamaged(f"{batch.batch_id}: its plan is gone; cancel it and submit the file again")
    return found.record


def end(ledger: Ledger, batch_id: str, reason: EndReason, detail: str | None = None) -> BatchRecord | None:
    """Cancel, expire or fail an open batch: from now on no line starts. None: no such batch.

    Committed results stay. The rest is done by `finish`, here or by any janitor.
    """

    now = ledger.clock.now()

    def decide(record: BatchRecord) -> BatchRecord | None:
        if record.state not in {"open", "planning"}:
            return None
        return replace(record, state="ending", reason=reason, detail=detail, ending_at=now)

    found = update_batch(ledger, keys.batch_key(batch_id), decide)
    if found is None or found.record.state == "deleted":
        return None
    return found.record


def close_all(ledger: Ledger, batch: BatchRecord, plan: Plan, beat: Callable[[], None] = lambda: None) -> Records:
    """Fence every shard of an ending batch, also those that nobody ever held: one write each. Their records.

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
    """Each shard's record, which no one writes again; None where one is not done yet. Calls `beat` between them."""

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


def _is_begun(ledger: Ledger, batch: BatchRecord, plan: Plan) -> bool:
    """Has every shard a record? Costs a listing, before anything is written for a batch that is not complete."""
    begun = sum(1 for _ in ledger.store.list(keys.shards_prefix(batch.batch_id)))
    return begun >= sum(1 for _ in _shards_of(plan))


def _shards_of(plan: Plan) -> Iterator[Shard]:
    """In the order of the input, as they are assembled."""
    return ((pool, n) for n in range(len(plan.ranges)) for pool, members in plan.pools.items() if n in members)


class _Stopped(Exception):
    """The process that assembles is to end."""


def finish(
    ledger: Ledger, batch_id: str, *, runner: str, is_stopped: Callable[[], bool] = lambda: False
) -> BatchRecord | None:
    """End a batch whose shards are all done, or that is ending: close, assemble, commit, tidy.

    Returns the ended record; None where it can not end yet, someone else is at it, or it was stopped in the middle,
    which is looked for between ranges. Raises: BatchDamaged.
    """
    batch = read_batch(ledger, batch_id)
    if batch is None or batch.state == "ended":
        return batch
    if not batch.plan_key:
        return _end_unplanned(ledger, batch_id)
    # While one process ends it, all the others ask again and again whether it has ended: that must cost little.
    if shards.is_held(ledger, keys.assembly_key(batch_id)):
        return None
    try:
        plan = read_plan(ledger, batch)
    except BatchDamaged as error:
        return _end_without_plan(ledger, batch, error)
    if batch.state == "open" and not _is_begun(ledger, batch, plan):
        return None
    held = shards.claim_task(ledger, batch, keys.assembly_key(batch_id), keys.ASSEMBLY_POOL, runner=runner)
    made = None if held is None else _assemble(ledger, held, plan, is_stopped)
    return None if made is None else _conclude(ledger, batch, plan, made)


def _conclude(ledger: Ledger, batch: BatchRecord, plan: Plan, made: Assembled) -> BatchRecord | None:
    """Commit the end; who does that alone tidies up behind it."""
    ended = _commit_end(ledger, batch, plan, made)
    if ended is None or ended.results != made.results:
        _discard(ledger, made)
        return ended
    with suppress(StoreError):  # retention removes what stays
        sweep_parts(ledger, ended)
    return ended


def _assemble(ledger: Ledger, held: shards.Lease, plan: Plan, is_stopped: Callable[[], bool]) -> Assembled | None:
    """None where a shard is not done yet, where someone else has the turn now, or has ended the batch before."""

    def beat() -> None:
        if is_stopped():
            raise _Stopped
        shards.beat(ledger, held)

    try:
        batch = read_batch(ledger, held.batch.batch_id)  # as it is now that it is our turn
        if batch is None or batch.state == "ended":
            return None
        if batch.state == "ending":
            records: Records | None = close_all(ledger, batch, plan, beat)
        else:
            records = final_records(ledger, batch, plan, beat)
        if records is not None:
            return assemble(ledger, batch, plan, records, nonce=ledger.new_id()[:12], beat=beat)
    except LeaseLost:
        return None
    except _Stopped:
        shards.give_back(ledger, held)
        return None
    except BatchfileError:
        shards.give_back(ledger, held)
        raise
    shards.give_back(ledger, held)
    return None


def _discard(ledger: Ledger, made: Assembled) -> None:
    """Files that no record names, because another's do, or the batch is gone. Best effort."""
    with suppress(StoreError):
        ledger.store.delete_many([made.results.key, made.errors.key])


def _end_unplanned(ledger: Ledger, batch_id: str) -> BatchRecord | None:
    """It was ended before it had a plan: nothing of it ran, and it has no results. None while it is planning."""
    now = ledger.clock.now()

    def decide(record: BatchRecord) -> BatchRecord | None:
        return replace(record, state="ended", ended_at=now) if record.state == "ending" else None

    ended = update_batch(ledger, keys.batch_key(batch_id), decide)
    if ended is None or ended.record.state != "ended":
        return None
    log.info("batch.ended", batch_id=batch_id, reason=ended.record.reason, total=0)
    return ended.record


def _end_without_plan(ledger: Ledger, batch: BatchRecord, error: BatchDamaged) -> BatchRecord | None:
    """Nobody can tell any more which lines it has: one that is ending ends without results. Raises: `error` else."""
    if batch.state != "ending" or not _is_lost(ledger, batch.plan_key, error):
        raise error
    log.error("plan.lost", batch_id=batch.batch_id, error=str(error))
    now = ledger.clock.now()

    def decide(record: BatchRecord) -> BatchRecord | None:
        if record.state != "ending":
            return None
        detail = "the stored plan of this batch is lost, and its results"
        return replace(record, state="ended", ended_at=now, detail=detail)

    ended = update_batch(ledger, keys.batch_key(batch.batch_id), decide)
    return None if ended is None or ended.record.state != "ended" else ended.record


def _is_lost(ledger: Ledger, key: str, error: BatchDamaged) -> bool:
    """Is what stood at `key` gone or damaged for good? Asked in another way: something that answers in place of the
    store does not know the etag of what it gave. Raises: StoreError.
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
            counts=made.counts,
            usage=made.usage,
            gpu_s=made.gpu_s,
        )

    ended = update_batch(ledger, keys.batch_key(batch.batch_id), decide)
    if ended is None:
        return None
    ledger.store.delete_many(list(_queue_entries(batch, plan)))
    log.info("batch.ended", batch_id=batch.batch_id, reason=ended.record.reason, total=batch.total)
    return ended.record


def sweep_parts(ledger: Ledger, batch: BatchRecord) -> None:
    """Remove what an ended batch does not name: parts, ids, and assemblies that lost."""
    keep = {ref.key for ref in (batch.results, batch.errors) if ref is not None}
    found = [entry.key for entry in ledger.store.list(keys.parts_prefix(batch.batch_id))]
    for stem in ("results-", "errors-", "custom-ids-"):
        found += [entry.key for entry in ledger.store.list(keys.batch_prefix(batch.batch_id) + stem)]
    ledger.store.delete_many([key for key in found if key not in keep])


def delete(ledger: Ledger, batch_id: str) -> BatchRecord | None:
    """Make an ended batch unreadable at once; `remove_objects` frees the space later."""
    now = ledger.clock.now()

    def decide(record: BatchRecord) -> BatchRecord | None:
        return replace(record, state="deleted", deleted_at=now) if record.state == "ended" else None

    found = update_batch(ledger, keys.batch_key(batch_id), decide)
    return None if found is None else found.record


def remove_objects(ledger: Ledger, batch: BatchRecord) -> None:
    """Everything of a deleted batch but its tombstone."""
    tombstone = keys.batch_key(batch.batch_id)
    found = [entry.key for entry in ledger.store.list(keys.batch_prefix(batch.batch_id))]
    ledger.store.delete_many([key for key in found if key != tombstone])


def fence_abandoned(ledger: Ledger, batch_id: str) -> bool:
    """As `fence`, of a create that shows no sign of life."""
    minutes = ledger.limits.abandoned_s / 60
    return fence(ledger, batch_id, f"nothing was heard of its create for {minutes:.0f} minutes, and it was given up")


def fence(ledger: Ledger, batch_id: str, why: str) -> bool:
    """Make sure that a create which never committed never will, then free its space. False: it exists, or did.

    `why` is what the create is told, should it only have been slow.
    """
    now = ledger.clock.now()
    tombstone = BatchRecord(
        batch_id=batch_id,
        created_at=now,
        expires_at=now,
        input=InputRef(key="", etag="", size=0, sha256="", format="native"),
        plan_key="",
        total=0,
        routing=RoutingTable(),
        defaults=Defaults(),
        state="deleted",
        detail=why,
        deleted_at=now,
        seq=1,
        write_id=ledger.new_id(),
    )
    if isinstance(swap(ledger, keys.batch_key(batch_id), tombstone, None), Lost):
        return False
    ledger.store.put(keys.index_key(tombstone.tenant, now, batch_id), b"")
    remove_objects(ledger, tombstone)
    return True


def is_fence(record: BatchRecord) -> bool:
    """Does it stand for a create that was given up, so that there never was such a batch?"""
    return record.state == "deleted" and not record.input.key


def remove_tombstone(ledger: Ledger, batch: BatchRecord) -> None:
    """The last trace; the index marker goes last, so that a cut-off removal is found again."""
    ledger.store.delete(keys.batch_key(batch.batch_id))
    ledger.store.delete(keys.index_key(batch.tenant, batch.created_at, batch.batch_id))


def _queue_entries(batch: BatchRecord, plan: Plan) -> Iterator[str]:
    for pool in plan.pools:
        if pool not in keys.SETTLED_POOLS:
            yield keys.queue_key(pool, batch.priority, batch.created_at, batch.batch_id)
