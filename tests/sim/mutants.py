"""The protocol, broken on purpose in one place each: the simulator must notice. Bugs that it once found are here too.

A mutant is a patch for as long as its context lasts. Those that break no promise are in harmless.py.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any
from unittest.mock import patch

from batchfile import Ledger
from batchfile.errors import BatchfileError, StoreUnavailable
from batchfile.types import Counts
from tests.helpers.inbox import CLAIMS_PREFIX, outbox
from tests.helpers.ledger import (
    BatchRecord,
    BatchSnapshot,
    BatchState,
    IdempotencyRecord,
    KeyedBatch,
    Lease,
    Lost,
    PartRef,
    Records,
    SetAside,
    ShardRecord,
    Stored,
    assemble,
    batches,
    bitmaps,
    cas,
    encode,
    ending,
    idempotency,
    keys,
    lease,
    load,
    retention,
    shards,
)
from tests.helpers.lines import encode_part
from tests.helpers.plan import pending as plan_pending
from tests.helpers.runner import BatchView, Claimer, TenantRotation
from tests.helpers.service import webhooks
from tests.sim.store import ProcessStore
from tests.sim.world import World

Mutant = Callable[[], AbstractContextManager[object]]


def replaced(target: object, name: str, new: object) -> Mutant:
    return lambda: patch.object(target, name, new)


def _unconditional(marker: str) -> Mutant:
    put = ProcessStore.put

    def blind(self: ProcessStore, key: str, data: bytes, **condition: Any) -> str:
        return put(self, key, data, **({} if marker in key else condition))

    return replaced(ProcessStore, "put", blind)


def _late(verb: str, marker: str) -> Mutant:
    """What `verb` writes to these keys is only there a while after it was acknowledged."""
    write = getattr(ProcessStore, verb)

    def later(self: ProcessStore, key: str, data: bytes, **condition: Any) -> str:
        if marker not in key:
            return write(self, key, data, **condition)  # type: ignore[no-any-return]
        World.current.at(2.0, lambda: self._inner.put(key, data))
        return hashlib.sha256(data).hexdigest()[:32]

    return replaced(ProcessStore, verb, later)


def judged(verdict: Callable[[Any, Any, str], str]) -> Mutant:
    judge = cas.judge
    return replaced(cas, "judge", lambda found, ours: verdict(found, ours, judge(found, ours)))


def _any_seq_is_ours(found: Any, ours: Any, verdict: str) -> str:
    return "won" if isinstance(found, ShardRecord) and found.lease == ours.lease else verdict


def _theirs_is_ours(found: Any, ours: Any, verdict: str) -> str:
    return "again" if isinstance(found, ShardRecord) and found.state == "leased" else verdict


def _rewritten_when_done(found: Any, ours: Any, verdict: str) -> str:
    is_ours = isinstance(found, ShardRecord) and found.lease == ours.lease and found.seq < ours.seq
    return "again" if is_ours else verdict


@contextmanager
def _timeout_is_success() -> Iterator[None]:
    swap = cas.swap

    def hopeful(ledger: Ledger, key: str, record: Any, over: Any, **how: Any) -> Any:
        etag = None if over is None else over.etag
        try:
            return Stored(record, ledger.store.put(key, encode(record), absent=etag is None, match=etag))
        except StoreUnavailable:
            return Stored(record, hashlib.sha256(encode(record)).hexdigest()[:32])
        except Exception:
            return swap(ledger, key, record, over, **how)

    with patch.object(shards, "swap", hopeful):
        yield


def _claimed_without(**lost: Any) -> Mutant:
    claimed = lease.claimed
    return replaced(lease, "claimed", lambda record, **who: replace(claimed(record, **who), **lost))


@contextmanager
def _assembled_too_early() -> Iterator[None]:
    def as_they_are(ledger: Ledger, batch: BatchRecord, plan: Any, beat: Any = None) -> Records:
        members = [(pool, n) for pool, members in plan.pools.items() for n in members]
        found = {shard: load(ledger, keys.shard_key(batch.batch_id, *shard), ShardRecord) for shard in members}
        return {shard: replace(one.record, state="done") for shard, one in found.items() if one is not None}

    def of_those_there_are(batch: BatchRecord, plan: Any, n: int, records: Records) -> Iterator[ShardRecord]:
        yield from (records[pool, n] for pool in plan.pools if (pool, n) in records)

    with (
        patch.object(BatchSnapshot, "is_running", property(lambda _: False)),
        patch.object(ending, "_is_begun", lambda *_: True),
        patch.object(ending, "final_records", as_they_are),
        patch.object(assemble, "_records_of", of_those_there_are),
    ):
        yield


@contextmanager
def _record_before_part() -> Iterator[None]:
    """The record names the part, then the part is written."""
    rewrite = shards._rewrite
    pending: list[tuple[str, bytes]] = []

    def part(ledger: Ledger, key: str, lines: Any) -> PartRef:
        data = encode_part(lines)
        pending.append((key, data))
        return PartRef(key=key, size=len(data), sha256=hashlib.sha256(data).hexdigest())

    def after(ledger: Ledger, held: Lease, wanted: ShardRecord, _: PartRef | None = None) -> None:
        mine, pending[:] = list(pending), []
        rewrite(ledger, held, wanted)
        for key, data in mine:
            ledger.store.put(key, data)

    with patch.object(shards, "write_part", part), patch.object(shards, "_rewrite", after):
        yield


@contextmanager
def _repeat_with_the_same_seq() -> Iterator[None]:
    """A checkpoint numbers its write by the record that it last saw, not by what it last tried."""
    checkpoint = shards.checkpoint

    def forgetful(ledger: Ledger, held: Lease, finished: Any = (), **how: Any) -> None:
        held.seq = held.record.seq
        checkpoint(ledger, held, finished, **how)

    with patch.object(shards, "checkpoint", forgetful):
        yield


def _counted_before_commit() -> AbstractContextManager[object]:
    """A failed checkpoint is taken for done: its lines are forgotten."""
    checkpoint = shards.checkpoint

    def forgetful(ledger: Ledger, held: Lease, finished: Any = (), **how: Any) -> None:
        try:
            checkpoint(ledger, held, finished, **how)
        except StoreUnavailable:
            held.num_parts += 1

    return patch.object(shards, "checkpoint", forgetful)


def closes(*, known: bool) -> AbstractContextManager[object]:
    """None of the shards, or only those that were claimed before."""
    close = shards.close

    def lazy(ledger: Ledger, batch_id: str, plan: Any, pool: str, n: int, *, reason: Any, **_: Any) -> ShardRecord:
        found = load(ledger, keys.shard_key(batch_id, pool, n), ShardRecord)
        if found is None:
            return lease.born_closed(pool, n, plan.pools[pool][n], lease="x", reason=reason)
        if known or found.record.state == "done":
            return close(ledger, batch_id, plan, pool, n, reason=reason)
        return lease.closed(found.record, lease="x", reason=reason)

    return patch.object(shards, "close", lazy)


def _forgets_the_unclaimed() -> AbstractContextManager[object]:
    close_all = ending.close_all

    def known(*given: Any) -> Records:
        return {shard: record for shard, record in close_all(*given).items() if record.runner or record.epoch > 1}

    return patch.object(ending, "close_all", known)


@contextmanager
def _key_after_batch() -> Iterator[None]:
    """The idempotency record is written once the batch exists."""
    create, pending = batches.create, dict[str, tuple[str, IdempotencyRecord]]()

    def get_or_create(ledger: Ledger, *, kind: str, tenant: str, value: str, digest: str, batch_id: str) -> KeyedBatch:
        key = keys.idempotency_key(kind, f"{tenant}\n{value}")
        found = load(ledger, key, IdempotencyRecord)
        if found is not None:
            return KeyedBatch(batch_id=found.record.batch_id, created_at=found.record.created_at, is_first=False)
        now = ledger.clock.now()
        pending[batch_id] = (key, IdempotencyRecord(batch_id=batch_id, digest=digest, created_at=now))
        return KeyedBatch(batch_id=batch_id, created_at=now)

    def create_then_key(ledger: Ledger, draft: Any, planned: Any) -> BatchRecord:
        made = create(ledger, draft, planned)
        if draft.batch_id in pending:
            key, record = pending.pop(draft.batch_id)
            ledger.store.put(key, encode(record))
        return made

    with patch.object(idempotency, "get_or_create", get_or_create), patch.object(batches, "create", create_then_key):
        yield


def _first_attempt_overwrites() -> AbstractContextManager[object]:
    """Whatever a retry wrote down before it."""
    get_or_create_retry = idempotency.get_or_create_retry

    def never_late(ledger: Ledger, **asked: Any) -> KeyedBatch:
        return get_or_create_retry(ledger, **asked | {"arrived_at": ledger.clock.monotonic()})

    return patch.object(idempotency, "get_or_create_retry", never_late)


def _abandoned_without_fence() -> AbstractContextManager[object]:
    def is_gone(ledger: Ledger, tenant: str, found: Stored[IdempotencyRecord]) -> bool:
        batch = load(ledger, keys.batch_key(found.record.batch_id), BatchRecord)
        return found.age_s >= ledger.limits.abandoned_s if batch is None else batch.record.state == "deleted"

    return patch.object(idempotency, "_is_gone", is_gone)


def _zombie_writes_on() -> AbstractContextManager[object]:
    swap = shards.swap

    def stubborn(ledger: Ledger, key: str, record: Any, over: Any) -> Any:
        written = swap(ledger, key, record, over)
        if isinstance(written, Lost) and written.found is not None and record.seq > 1:
            return swap(ledger, key, record, written.found)
        return written

    return patch.object(shards, "swap", stubborn)


def _ends_whatever_it_is() -> AbstractContextManager[object]:
    def end(ledger: Ledger, batch_id: str, reason: Any, detail: str | None = None) -> BatchRecord | None:
        found = cas.update_batch(
            ledger, keys.batch_key(batch_id), lambda record: replace(record, state="ending", reason=reason)
        )
        return None if found is None else found.record

    return patch.object(batches, "end", end)


def _sweeps_before_the_end() -> AbstractContextManager[object]:
    commit = ending._commit_end

    def swept(ledger: Ledger, batch: BatchRecord, plan: Any, made: Any) -> BatchRecord | None:
        for entry in list(ledger.store.list(keys.parts_prefix(batch.batch_id))):
            ledger.store.delete(entry.key)
        return commit(ledger, batch, plan, made)

    return patch.object(ending, "_commit_end", swept)


def _insists(module: ModuleType, verb: str, state: BatchState) -> Mutant:
    """`verb` decides as if the batch were in `state`, whatever it is in."""
    update = cas.update_batch

    def insistent(ledger: Ledger, key: str, decide: Any) -> Any:
        if not decide.__qualname__.startswith(verb):
            return update(ledger, key, decide)
        return update(ledger, key, lambda record: decide(replace(record, state=state)))

    return replaced(module, "update_batch", insistent)


def _part_without_lease(batch_id: str, pool: str, n: int, lease: str, k: int) -> str:
    return f"{keys.parts_prefix(batch_id)}{pool}/{n:06d}/{k}.jsonl"


def _every_line(held: Lease) -> int:
    return (1 << held.range.num_lines) - 1


def _no_crash_counts(record: ShardRecord, *, lease: str, runner: str) -> ShardRecord:
    return replace(
        record, state="leased", lease=lease, runner=runner, epoch=record.epoch + 1, seq=1, has_dispatched=False
    )


def _by_the_clock_of_the_reader() -> AbstractContextManager[object]:
    def kept_for_s(ledger: Ledger, batch: BatchRecord) -> float:
        return (batch.ended_at or batch.created_at) + ledger.limits.retention_s - ledger.clock.now()

    return patch.object(retention, "kept_for_s", kept_for_s)


@contextmanager
def _same_lease() -> Iterator[None]:
    fresh, claimed = lease.fresh, lease.claimed
    with (
        patch.object(lease, "fresh", lambda *place, **who: fresh(*place, **who | {"lease": "x"})),
        patch.object(lease, "claimed", lambda record, **who: claimed(record, **who | {"lease": "x"})),
    ):
        yield


def _one_refusal_stops_all() -> AbstractContextManager[object]:
    def put(self: SetAside, batch_id: str, work: Any, error: BatchfileError) -> float:
        raise error

    return patch.object(SetAside, "put", put)


def _an_id_for_each_attempt() -> AbstractContextManager[object]:
    event_of = webhooks.event_of
    num = itertools.count()

    def named_anew(batch: BatchRecord) -> webhooks.Event:
        return replace(event_of(batch), event_id=f"evt_{next(num)}")

    return patch.object(webhooks, "event_of", named_anew)


@contextmanager
def _told_before_it_is_sent() -> Iterator[None]:
    """The attempt is written down as the delivery."""
    record = webhooks.WebhookRecord

    def delivered(**known: Any) -> webhooks.WebhookRecord:
        return record(**known | ({"state": "delivered"} if known["num_attempts"] else {}))

    with patch.object(webhooks, "WebhookRecord", delivered), patch.object(webhooks, "load", _load_hook(record)):
        yield


def _load_hook(record: type[webhooks.WebhookRecord]) -> Callable[..., Any]:
    return lambda ledger, key, kind: load(ledger, key, record)


def _same_write_id() -> AbstractContextManager[object]:
    def same(record: Any, **changes: Any) -> Any:
        return replace(record, **changes | ({"write_id": "w"} if "write_id" in changes else {}))

    return patch.object(cas, "replace", same)


def _the_first_of_all(self: Claimer, *, is_unclaimed: bool) -> BatchView | None:
    return min(self._candidates(), key=lambda view: view.batch.batch_id, default=None)


def _first_line_is_always_done() -> AbstractContextManager[object]:
    of = bitmaps.of
    return patch.object(bitmaps, "of", lambda lines: of(lines) | 1)


MUTANTS: dict[str, Mutant] = {
    "shard records are written without a condition": _unconditional("/shards/"),
    "batch records are written without a condition": _unconditional("/batch.json"),
    "idempotency records are written without a condition": _unconditional("idempotency/"),
    "a record under our lease is ours, whatever its seq": judged(_any_seq_is_ours),
    "a stranger's record is overwritten on its own etag": judged(_theirs_is_ours),
    "a timeout is taken for success": _timeout_is_success,
    "a part's key does not name the lease": replaced(keys, "part_key", _part_without_lease),
    "a takeover forgets all that was done": _claimed_without(parts=(), done="0", counts=Counts()),
    "a takeover drops the parts": _claimed_without(parts=()),
    "a batch is assembled before all is done": _assembled_too_early,
    "a record names a part before it is written": _record_before_part,
    "lines are counted before they are committed": _counted_before_commit,
    "a repeated checkpoint reuses its seq": _repeat_with_the_same_seq,
    "a batch is committed before its input": _late("commit", "/input-"),
    "a batch is committed before its plan": _late("put", "/plan-"),
    "a batch ends before its results are written": _late("commit", "/results-"),
    "a cancel closes nothing": lambda: closes(known=False),
    "a cancel knows only what was claimed": _forgets_the_unclaimed,
    "the idempotency record comes after the batch": _key_after_batch,
    "lines that are done run again": replaced(Lease, "missing", property(_every_line)),
    "a zombie goes on writing": _zombie_writes_on,
    "a cancel changes an ended batch": _ends_whatever_it_is,
    "parts are swept before the end is committed": _sweeps_before_the_end,
    "a second assembly replaces the first": _insists(ending, "_commit_end", "open"),
    "a second plan replaces the first": _insists(plan_pending, "_leave_planning", "planning"),
    "a batch that lives can be deleted": _insists(retention, "delete", "ended"),
    "a line that kills its runner is never found": replaced(lease, "claimed", _no_crash_counts),
    "the bitmap says more than the parts": _first_line_is_always_done,
    "every lease has the same id": _same_lease,
    "two writes have one id": _same_write_id,
    "a batch expires by the clock of the process that looks": replaced(
        retention, "is_over", lambda ledger, batch: ledger.clock.now() >= batch.expires_at
    ),
    "results go by the clock of the process that looks": _by_the_clock_of_the_reader,
    "what is refused of one batch stops the others": _one_refusal_stops_all,
    "a batch that was set aside is left alone for ever": replaced(
        SetAside, "left_s", lambda self, batch_id, work=None: 1e9 if batch_id in self.reasons() else 0.0
    ),
    "a file in the inbox is claimed without a condition": _unconditional(CLAIMS_PREFIX),
    "what came of an older version is told too": replaced(outbox, "is_newest", lambda *_: True),
    "a webhook counts as told before it is sent": _told_before_it_is_sent,
    "each attempt at a webhook has an id of its own": _an_id_for_each_attempt,
    "the batch that sorts first is always claimed from": replaced(Claimer, "_choose", _the_first_of_all),
    "the tenant whose name sorts last is always next": replaced(
        TenantRotation, "take", lambda self, tenants: max(tenants)
    ),
    "a file that kills its planners is never found": replaced(plan_pending, "CRASHES_MAX", 10**6),
    # found here once, and mended
    "a done record is written again": judged(_rewritten_when_done),
    "an abandoned create is not fenced": _abandoned_without_fence,
    "a first attempt takes its retry's place": _first_attempt_overwrites,
}


@contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(mutant())
        yield
