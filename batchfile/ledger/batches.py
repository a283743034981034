"""The operations on a batch: create, read, end. Each can be interrupted anywhere and called again.

`create` commits with one conditional write, last. `end` only marks the batch as ending: `ending` does the work.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice

import structlog

from batchfile import tracing
from batchfile.errors import BatchDamaged, StoreError
from batchfile.ledger import keys, retention
from batchfile.ledger.base import Ledger
from batchfile.ledger.cas import Lost, load, swap, update_batch
from batchfile.ledger.records import BatchRecord, EndReason, InputRef, LineError, Plan, ShardRecord
from batchfile.lines.result import decode_part, decode_result
from batchfile.types import TENANT, Defaults, RoutingTable

log = structlog.get_logger()

REJECTED_READ_MAX = 100

_PLACE = re.compile(r"line (\d+): ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A batch that is about to be created. `created_at`: None means when it is committed.

    `deadline`: when it expires, in epoch seconds; None for the completion window.
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
    """A planned input with everything stored but its commit. `num_rejected` counts the lines that will not run.

    `num_reused`: lines with the result of another batch; `reused_from`: how many, by batch;
    `num_equal`: how many requests of such a batch this one has too, by batch; `num_unhashed`: how many have no
    hash; `num_by_url`: requests with media by URL, which have no hash; `unusable`: why a batch was not used, by batch;
    `fingerprints`: of the engines that made them, by pool. `reuse_note`: why results were not used, as a sentence.
    `metadata` is added to that of the draft: what is known only once the input was read.
    """

    input: InputRef
    plan: Plan
    plan_key: str
    total: int
    num_rejected: int
    first_problem: str | None = None
    num_hints: int = 0
    num_reused: int = 0
    reused_from: dict[str, int] = field(default_factory=dict)
    num_equal: dict[str, int] = field(default_factory=dict)
    num_unhashed: dict[str, int] = field(default_factory=dict)
    num_by_url: int = 0
    unusable: dict[str, str] = field(default_factory=dict)
    fingerprints: dict[str, tuple[str, ...]] = field(default_factory=dict)
    reuse_note: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)


def attributes_of(batch: Draft | BatchRecord) -> dict[str, str]:
    """Of its spans."""
    known = {"batchfile.batch_id": batch.batch_id, "batchfile.tenant": batch.tenant}
    return known if batch.stage is None else known | {"batchfile.stage": batch.stage}


def announce(ledger: Ledger, draft: Draft) -> None:
    """Write the index entry before anything else, so that the janitor removes the batch if it is never committed.

    Call it from time to time while the create lasts: a create without an announcement for `abandoned_s` is abandoned.
    """
    ledger.store.put(_index_key(draft), b"")


def withdraw(ledger: Ledger, draft: Draft) -> None:
    """Remove the index entry of a rejected batch. Best effort: the janitor does it too."""
    with suppress(StoreError):
        ledger.store.delete(_index_key(draft))


def _index_key(draft: Draft) -> str:
    assert draft.created_at is not None, "an announced draft has a creation time"
    return keys.index_key(draft.tenant, draft.created_at, draft.batch_id)


def create(ledger: Ledger, draft: Draft, planned: Planned) -> BatchRecord:
    """Commit a planned batch. Nothing runs before the last write; a crash before it leaves only garbage.

    The same draft after a lost answer finds its own batch; a batch that another writer committed meanwhile is kept.
    Raises: StoreUnavailable; BatchDamaged where a batch of other requests has this id, or the create was fenced.
    """
    record = replace(
        record_of(ledger, draft, planned.input),
        plan_key=planned.plan_key,
        total=planned.total,
        metadata={**draft.metadata, **planned.metadata},
        reused=planned.reused_from,
        fingerprints=planned.fingerprints,
        reuse_note=planned.reuse_note,
    )
    enqueue(ledger, record, planned.plan)
    ledger.store.put(keys.index_key(record.tenant, record.created_at, record.batch_id), b"")
    made = commit(ledger, record)
    if made.is_ours:
        notify(ledger, planned.plan.pools)
        log.info("batch.created", batch_id=draft.batch_id, requests=planned.total, pools=sorted(planned.plan.pools))
    return made.batch


def record_of(ledger: Ledger, draft: Draft, pinned: InputRef) -> BatchRecord:
    """The record of a new batch, open and without a plan."""
    created_at = ledger.clock.now() if draft.created_at is None else draft.created_at
    return BatchRecord(
        batch_id=draft.batch_id,
        created_at=created_at,
        expires_at=draft.deadline or created_at + ledger.limits.completion_window_s,
        input=pinned,
        plan_key="",
        total=0,
        traceparent=tracing.current(),
        routing=draft.routing,
        defaults=draft.defaults,
        stage=draft.stage,
        priority=draft.priority,
        tenant=draft.tenant,
        metadata=draft.metadata,
        seq=1,
        write_id=ledger.new_id(),
    )


@dataclass(frozen=True, slots=True)
class Committed:
    """`is_ours`: this process wrote the record. Else another writer of the same create did, perhaps earlier."""

    batch: BatchRecord
    is_ours: bool


def commit(ledger: Ledger, record: BatchRecord) -> Committed:
    """Write the record of a new batch with one conditional write.

    Raises: StoreUnavailable; BatchDamaged where a batch of another create has this id, or the create was fenced.
    """
    written = swap(ledger, keys.batch_key(record.batch_id), record, None)
    if not isinstance(written, Lost):
        return Committed(written.record, is_ours=True)
    found = None if written.found is None else written.found.record
    if found is None or _identity(found) != _identity(record):
        raise _id_in_use(record.batch_id, found)
    return Committed(found, is_ours=False)


def _identity(batch: BatchRecord) -> tuple[object, ...]:
    """What the attempts of one create have in common. Planning may change the input of a batch with an origin."""
    if batch.origin is not None:
        return batch.tenant, batch.created_at, batch.origin.kind, batch.origin.name
    return batch.tenant, batch.created_at, batch.stage, batch.input.sha256


def _id_in_use(batch_id: str, found: BatchRecord | None) -> BatchDamaged:
    """Why a create cannot have its id: the record found there belongs to a different create."""
    if found is not None and retention.is_fence(found):
        return BatchDamaged(f"{batch_id} was never created: {found.detail}; submit this batch again")
    return BatchDamaged(f"the id {batch_id} is or was used by another batch; submit this batch again")


def enqueue(ledger: Ledger, batch: BatchRecord, plan: Plan) -> None:
    """Put the batch into the queues; runners skip it until it is open."""
    for key in queue_entries(batch, plan):
        ledger.store.put(key, b"")


def notify(ledger: Ledger, pools: Iterable[str]) -> None:
    """Tell idle runners that something changed. Only a hint: without it they find out later."""
    for pool in pools:
        if pool not in keys.PSEUDO_POOLS:
            with suppress(StoreError):
                ledger.store.put(keys.notification_key(pool), ledger.new_id().encode())


def read_batch(ledger: Ledger, batch_id: str) -> BatchRecord | None:
    found = load(ledger, keys.batch_key(batch_id), BatchRecord)
    return None if found is None or found.record.state == "deleted" else found.record


def read_plan(ledger: Ledger, batch: BatchRecord) -> Plan:
    found = load(ledger, batch.plan_key, Plan)
    if found is None:
        raise BatchDamaged(f"{batch.batch_id}: its plan is missing; cancel the batch and submit the file again")
    return found.record


def read_rejected(ledger: Ledger, batch_id: str, plan: Plan) -> tuple[LineError, ...]:
    """The first lines that the planner rejected, in order, each with its reason, from the stored results.

    Raises: StoreUnavailable, BatchDamaged.
    """
    return tuple(islice(_rejected(ledger, batch_id, plan), REJECTED_READ_MAX))


def _rejected(ledger: Ledger, batch_id: str, plan: Plan) -> Iterator[LineError]:
    for n in sorted(plan.pools.get(keys.REJECTED_POOL, {})):
        found = load(ledger, keys.shard_key(batch_id, keys.REJECTED_POOL, n), ShardRecord)
        lines = []
        for part in () if found is None else found.record.parts:
            stored = ledger.store.get(part.key)
            lines += [] if stored is None else decode_part(stored.data)
        for line in sorted(lines, key=lambda item: item.line):
            error = decode_result(line.result).error
            message = "" if error is None else error.message
            place = _PLACE.match(message)
            yield LineError(
                code="invalid_line",
                message=message[place.end() :] if place else message,
                line=int(place[1]) if place else None,
            )


def end(ledger: Ledger, batch_id: str, reason: EndReason, detail: str | None = None) -> BatchRecord | None:
    """Cancel, expire or fail an open batch: no line starts from now on. None: no such batch.

    Committed results are kept. `finish` does the rest, here or in any janitor.
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


def queue_entries(batch: BatchRecord, plan: Plan) -> Iterator[str]:
    for pool in plan.pools:
        if pool not in keys.PSEUDO_POOLS:
            yield keys.queue_key(pool, batch.priority, batch.created_at, batch.batch_id)
