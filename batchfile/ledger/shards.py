"""The lease, and the operations of its holder: claim, checkpoint, release. Each is one conditional write.

What one process does for a whole batch (plan it, assemble it, publish it) is a task: a lease on a pseudo-shard of one
line. It knows no engine and no thread. A holder that loses a write has lost the record and drops its work at once.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import structlog

from batchfile.errors import (
    BatchDamaged,
    LeaseLost,
    RecordDamaged,
    RecordNewer,
    ShardClosed,
    StoreError,
    StoreUnavailable,
)
from batchfile.ledger import bitmaps, keys, lease
from batchfile.ledger.base import Ledger
from batchfile.ledger.cas import ATTEMPTS_MAX, Lost, Stored, load, swap
from batchfile.ledger.profile import spread
from batchfile.ledger.records import BatchRecord, EndReason, PartRef, Plan, Range, ShardRecord, ShardState
from batchfile.lines.failures import tally_of
from batchfile.lines.result import FinishedLine, encode_part
from batchfile.types import Counts, Usage

log = structlog.get_logger()

DISPATCH_SHARE_OF_TTL = 2 / 3  # a holder that has not renewed for this share of the TTL stops dispatching
RETURN_S = 1.0  # between two attempts to give a task back; doubles, up to a share of the lease
RETURN_SHARE_OF_TTL = 1 / 3
RETURN_ATTEMPTS = 2  # the first is rejected if the holder was asked meanwhile

TASK_RANGE = Range(start=0, end=0, first=0, first_row=1, num_lines=1)


class TaskStopped(Exception):
    """The process that works on a task is stopping."""


@dataclass(slots=True, kw_only=True)
class Lease:
    """A shard or task that this process holds. Changed only by the functions below, by one thread at a time.

    `seq`: of the last attempted write, since two with one number could not be told apart. `written_at`: the holder's
    monotonic clock just before the last successful write was sent. `num_parts`: how many were written.
    """

    batch: BatchRecord
    range: Range
    key: str
    stored: Stored[ShardRecord]
    seq: int
    written_at: float
    num_parts: int = 0

    @property
    def record(self) -> ShardRecord:
        return self.stored.record

    @property
    def name(self) -> str:
        """The shard as logs and messages have it."""
        return f"{self.record.pool}/{self.record.n}"

    @property
    def missing(self) -> int:
        """A bitmap of the range's lines that are not done, including lines of other pools and rejected lines."""
        return ((1 << self.range.num_lines) - 1) & ~bitmaps.parse(self.record.done)

    def may_dispatch(self, now_monotonic: float, ttl_s: float) -> bool:
        return now_monotonic - self.written_at < ttl_s * DISPATCH_SHARE_OF_TTL


def claim(ledger: Ledger, batch: BatchRecord, plan: Plan, pool: str, n: int, *, runner: str) -> Lease | ShardState:
    """Claim shard `n` of `pool` if it is free; else return the state it was found in. Raises: StoreUnavailable."""
    key = keys.shard_key(batch.batch_id, pool, n)
    sent_at = ledger.clock.monotonic()
    found = load(ledger, key, ShardRecord)
    fresh = lease.fresh(pool, n, plan.pools[pool][n], lease=ledger.new_id(), runner=runner)
    stored = take(ledger, key, found, fresh)
    if stored is None:
        return "leased" if found is None else found.record.state
    held = Lease(batch=batch, range=plan.ranges[n], key=key, stored=stored, seq=stored.record.seq, written_at=sent_at)
    if found is None:
        # The process that ends the batch may have looked at this shard before it had a record.
        now = load(ledger, keys.batch_key(batch.batch_id), BatchRecord)
        if now is None:  # its tombstone is gone too: nothing would ever remove what is written for it
            _remove(ledger, key)
            return "closed"
        if now.record.state != "open":
            close(ledger, batch.batch_id, plan, pool, n, reason=now.record.reason or "failed")
            return "closed"
    return held


def claim_task(
    ledger: Ledger, batch: BatchRecord, key: str, pool: str, *, runner: str, counts: bool = False
) -> Lease | None:
    """Claim a task of the whole batch. None: another process holds it. `pool`: the name of the pseudo-pool.

    `counts`: a crash of the holder counts against the work, so a silent holder is asked before it does.
    """
    sent_at = ledger.clock.monotonic()
    fresh = lease.fresh(pool, 0, TASK_RANGE.num_lines, lease=ledger.new_id(), runner=runner)
    fresh = replace(fresh, has_dispatched=True, bisect_set=(0,) if counts else ())
    try:
        stored = take(ledger, key, load(ledger, key, ShardRecord), fresh)
    except RecordDamaged as damage:  # it only says which process holds the task: nothing is lost with it
        written = swap(ledger, key, fresh, damage)
        stored = None if isinstance(written, Lost) else written
    if stored is None:
        return None
    return Lease(batch=batch, range=TASK_RANGE, key=key, stored=stored, seq=stored.record.seq, written_at=sent_at)


def take(ledger: Ledger, key: str, found: Stored[ShardRecord] | None, fresh: ShardRecord) -> Stored[ShardRecord] | None:
    """Write `fresh` if nothing was found; else take over the record if the rules allow it and our write wins.

    None also if its holder was only asked: it has another lease to answer, and a later call takes over.
    `fresh.has_dispatched`: the holder runs everything at once, so an expiry of this lease always counts.
    """
    if found is None:
        stored = swap(ledger, key, fresh, None)
    else:
        is_owner_dead = _is_owner_dead(ledger, found.record)
        if not _is_claimable(ledger, found, is_owner_dead):
            return None
        if lease.must_ask(found.record, is_owner_dead=is_owner_dead):
            swap(ledger, key, lease.doubted(found.record), found)
            return None
        claimed = lease.claimed(found.record, lease=fresh.lease, runner=fresh.runner)
        stored = swap(ledger, key, replace(claimed, has_dispatched=fresh.has_dispatched), found)
    return None if isinstance(stored, Lost) else stored


def is_free(ledger: Ledger, found: Stored[ShardRecord]) -> bool:
    """Can this record be taken over now?"""
    return _is_claimable(ledger, found, _is_owner_dead(ledger, found.record))


def is_held(ledger: Ledger, key: str) -> bool:
    """Is this task held now? One read, for a caller with a long preparation before it claims."""
    with suppress(RecordDamaged):
        found = load(ledger, key, ShardRecord)
        return found is not None and not is_free(ledger, found)
    return False


def _is_claimable(ledger: Ledger, found: Stored[ShardRecord], is_owner_dead: bool) -> bool:
    ttl_s = ledger.limits.lease_ttl_s
    return lease.is_claimable(found.record, age_s=found.age_s, ttl_s=ttl_s, is_owner_dead=is_owner_dead)


def _is_owner_dead(ledger: Ledger, record: ShardRecord) -> bool:
    """Does the store know that the owner is dead?"""
    return record.state == "leased" and ledger.store.is_process_dead(record.runner)


def checkpoint(
    ledger: Ledger,
    held: Lease,
    finished: Sequence[FinishedLine] = (),
    *,
    has_dispatched: bool,
    bisect_set: tuple[int, ...] | None = None,
    accused: int | None = None,
    fingerprints: Iterable[str] = ("",),
) -> None:
    """Commit `finished` (lines that no checkpoint holds yet), renew the lease and publish the progress.

    `bisect_set`: the lines of a new trial, none of which was dispatched yet. `accused`: the line that this process is
    about to end for. `fingerprints`: of the engines that this process has had. A shard that is done stays as it is.
    Raises: LeaseLost; StoreUnavailable, where the caller repeats it later with at least the same lines.
    """
    if held.record.state == "done":
        return
    part, counts, usage = None, Counts(), Usage()
    tally = tally_of(finished, held.range.first_row)
    if finished:
        part = _write_part(ledger, held, finished)
        counts, usage = _totals(finished)
    held.seq += 1
    wanted = lease.checkpointed(
        held.record,
        seq=held.seq,
        part=part,
        done=bitmaps.of(item.line for item in finished),
        counts=replace(counts, rejected=tally.num_rejected),
        usage=usage,
        has_dispatched=has_dispatched or (held.record.has_dispatched and bisect_set is None),
        bisect_set=bisect_set,
        accused=accused,
        gpu_s=sum(item.gpu_s for item in finished),
        request_s=spread(item.engine_s for item in finished),
        failures=tally.top(),
        fingerprints=fingerprints,
    )
    _rewrite(ledger, held, wanted, part)


def release(ledger: Ledger, held: Lease) -> None:
    """Release the shard for any runner to claim at once. Raises: LeaseLost, StoreUnavailable."""
    _rewrite(ledger, held, _released(held))


def beat(ledger: Ledger, held: Lease) -> None:
    """Renew a task when a checkpoint is due. Raises: LeaseLost if another process holds it now."""
    if ledger.clock.monotonic() - held.written_at >= ledger.limits.checkpoint_s:
        with suppress(StoreUnavailable):  # the next call tries again; an expired lease costs work, but no result
            _rewrite(ledger, held, _renewed(held))


def beating(ledger: Ledger, held: Lease, is_stopped: Callable[[], bool]) -> Callable[[], None]:
    """What the work on a task calls often. Raises: TaskStopped once `is_stopped`; as `beat`."""

    def beat_or_stop() -> None:
        if is_stopped():
            raise TaskStopped
        beat(ledger, held)

    return beat_or_stop


def finish(ledger: Ledger, held: Lease) -> None:
    """The task is done, and is never taken again. Raises: StoreUnavailable."""
    swap(ledger, held.key, replace(_renewed(held), state="done"), held.stored)


def leave(ledger: Ledger, held: Lease) -> None:
    """Let the lease expire and count, without asking the holder: this process lives, but its work has failed."""
    with suppress(StoreError, BatchDamaged):
        swap(ledger, held.key, lease.doubted(_renewed(held)), held.stored)


def give_back(ledger: Ledger, held: Lease) -> None:
    """Let the next attempt at a task begin at once. `give_back_owed` does what the store rejects now."""
    due_at, pause_s = float("-inf"), RETURN_S

    def is_returned() -> bool:
        nonlocal due_at, pause_s
        now = ledger.clock.monotonic()
        if now < due_at:
            return False
        if _is_returned(ledger, held, RETURN_ATTEMPTS):
            return True
        due_at, pause_s = now + pause_s, min(2 * pause_s, ledger.limits.lease_ttl_s * RETURN_SHARE_OF_TTL)
        return False

    if not _is_returned(ledger, held, ATTEMPTS_MAX):
        ledger.owed.append(is_returned)


def give_back_owed(ledger: Ledger) -> None:
    """Give back what this process could not give back before. Call it every few seconds."""
    for _ in range(len(ledger.owed)):
        with suppress(IndexError):  # another thread is doing it too
            is_returned = ledger.owed.popleft()
            if not is_returned():
                ledger.owed.append(is_returned)


def _is_returned(ledger: Ledger, held: Lease, attempts_max: int) -> bool:
    """Is it given back, or lost anyway?"""
    try:
        with suppress(RecordDamaged, RecordNewer):
            swap(ledger, held.key, _released(held), held.stored, attempts_max=attempts_max)
    except StoreError:
        return False
    return True


def _released(held: Lease) -> ShardRecord:
    held.seq += 1
    return lease.released(held.record, seq=held.seq)


def _renewed(held: Lease) -> ShardRecord:
    held.seq += 1
    return replace(held.record, seq=held.seq, is_doubted=False)


def close(
    ledger: Ledger, batch_id: str, plan: Plan, pool: str, n: int, *, reason: EndReason, is_new: bool = False
) -> ShardRecord:
    """Fence a shard for good, even if it is held; a done or closed one stays as it is. Returns the resulting record.

    A record that cannot be read is replaced: no runner can hold it, and the results it named are lost. `is_new`: it
    probably has no record, so one is written without reading first.
    """
    key = keys.shard_key(batch_id, pool, n)
    found = None if is_new else _load_or_damage(ledger, key)
    while not isinstance(found, Stored) or found.record.state not in {"done", "closed"}:
        lease_id = ledger.new_id()
        if isinstance(found, Stored):
            wanted = lease.closed(found.record, lease=lease_id, reason=reason)
        else:
            wanted = lease.born_closed(pool, n, plan.pools[pool][n], lease=lease_id, reason=reason)
            if found is not None:
                log.error("shard.lost", batch_id=batch_id, shard=f"{pool}/{n}", error=str(found))
                wanted = lease.lost(wanted, plan.ranges[n])
        written = swap(ledger, key, wanted, found)
        found = written.found if isinstance(written, Lost) else written
    return found.record


def _load_or_damage(ledger: Ledger, key: str) -> Stored[ShardRecord] | RecordDamaged | None:
    try:
        return load(ledger, key, ShardRecord)
    except RecordDamaged as damage:
        return damage


def write_part(ledger: Ledger, key: str, lines: Sequence[FinishedLine]) -> PartRef:
    """Write an immutable part. The key must never have been used."""
    data = encode_part(lines)
    ledger.store.put(key, data)
    return PartRef(key=key, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def _write_part(ledger: Ledger, held: Lease, finished: Sequence[FinishedLine]) -> PartRef:
    record = held.record
    # A key is used once: the part of an earlier attempt may be named by a record whose write won but was not answered.
    held.num_parts += 1
    key = keys.part_key(held.batch.batch_id, record.pool, record.n, record.lease, held.num_parts)
    return write_part(ledger, key, finished)


def _remove(ledger: Ledger, key: str) -> None:
    """Remove a part that no record names. Best effort."""
    with suppress(StoreError):
        ledger.store.delete(key)


def _totals(lines: Sequence[FinishedLine]) -> tuple[Counts, Usage]:
    by_status = {"succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
    tokens_in = tokens_out = cached = unknown = 0
    for item in lines:
        by_status[item.status] += 1
        tokens_in += item.usage.input_tokens
        tokens_out += item.usage.output_tokens
        cached += item.usage.cached_tokens
        unknown += item.usage.unknown
    usage = Usage(input_tokens=tokens_in, output_tokens=tokens_out, cached_tokens=cached, unknown=unknown)
    return Counts(**by_status), usage


def _rewrite(ledger: Ledger, held: Lease, wanted: ShardRecord, part: PartRef | None = None) -> None:
    """`part`: written for this record."""
    sent_at = ledger.clock.monotonic()
    written = swap(ledger, held.key, wanted, held.stored)
    if isinstance(written, Lost):
        if written.found is None and part is not None:  # the batch was removed while this process slept
            _remove(ledger, part.key)
        name = f"shard {wanted.pool}/{wanted.n} of {held.batch.batch_id}"
        if written.found is None or written.found.record.state == "closed":
            raise ShardClosed(f"{name} is closed: the batch has ended, or is about to")
        raise LeaseLost(f"{name} is now held by another runner")
    held.stored = written
    held.written_at = sent_at
