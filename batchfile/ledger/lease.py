"""The rules of a shard record, as pure functions: what each operation makes of it. Reads no clock, writes nothing.

A line that kills its whole process is found by counting expired leases. An expiry counts as a crash if the holder made
no progress under its lease; the first always counts, later ones only if the holder had written that it would dispatch.
From the second on, the holder writes `bisect_set` before it dispatches exactly those lines and nothing else, and each
crash halves the set. Three crashes with one line alone in flight blame that line: two may be chance where processes
die often.

A holder may be silent because it cannot reach the store. So before an expiry blames a single line, the holder is asked:
the record is marked as doubted, and the holder gets one more full lease, with a store that works, to write it again.
"""

from collections.abc import Iterable
from dataclasses import replace

from batchfile.ledger import bitmaps
from batchfile.ledger.profile import summed
from batchfile.ledger.records import EndReason, PartRef, Range, ShardRecord
from batchfile.lines.failures import merged
from batchfile.types import Counts, FailureGroup, Usage

CRASHES_BEFORE_BISECT = 2
CRASHES_OF_ONE_LINE = 3


def fresh(pool: str, n: int, num_lines: int, *, lease: str, runner: str) -> ShardRecord:
    """The record of a shard that was never claimed."""
    return ShardRecord(pool=pool, n=n, num_lines=num_lines, state="leased", lease=lease, runner=runner)


def is_claimable(record: ShardRecord, *, age_s: float, ttl_s: float, is_owner_dead: bool) -> bool:
    """Open; or leased, and its owner known to be dead or silent for `ttl_s`."""
    if record.state == "open":
        return True
    return record.state == "leased" and (is_owner_dead or age_s >= ttl_s)


def must_ask(record: ShardRecord, *, is_owner_dead: bool) -> bool:
    """Must the holder, whose lease has expired, be asked before its silence counts against a single line?"""
    return counts(record) and len(record.bisect_set) == 1 and not (record.is_doubted or is_owner_dead)


def doubted(record: ShardRecord) -> ShardRecord:
    """Keeps the lease and `seq`, so that whatever the holder writes next replaces this record."""
    return replace(record, is_doubted=True)


def counts(record: ShardRecord) -> bool:
    """Does a takeover of this record count as a crash?"""
    return record.state == "leased" and (record.crash_count == 0 or record.has_dispatched)


def claimed(record: ShardRecord, *, lease: str, runner: str) -> ShardRecord:
    """The record as its next holder claims it: the parts stay, the epoch grows, and the crash count may grow."""
    claim = replace(
        record,
        state="leased",
        lease=lease,
        runner=runner,
        epoch=record.epoch + 1,
        seq=1,
        has_dispatched=False,
        is_doubted=False,
    )
    if not counts(record):
        return claim
    claim = replace(claim, crash_count=record.crash_count + 1)
    if len(record.bisect_set) == 1:
        return replace(claim, crashes_alone=record.crashes_alone + 1)
    # The half is chosen by the claim, not by the trial, so that every holder after this crash runs the same lines.
    done = bitmaps.parse(record.done)
    left = tuple(line for line in record.bisect_set if not done >> line & 1)
    return replace(claim, bisect_set=left[: (len(left) + 1) // 2], crashes_alone=0)


def must_announce(record: ShardRecord) -> bool:
    """Must the holder write `has_dispatched` before it dispatches?"""
    return record.crash_count > 0 and not record.has_dispatched


def is_bisecting(record: ShardRecord) -> bool:
    """Must the holder dispatch only what `bisect_set` names, with nothing else in flight?"""
    return record.crash_count >= CRASHES_BEFORE_BISECT


def poison_line(record: ShardRecord) -> int | None:
    """The line that has killed its runner three times while it ran alone: it fails without another attempt."""
    if len(record.bisect_set) == 1 and record.crashes_alone >= CRASHES_OF_ONE_LINE:
        return record.bisect_set[0]
    return None


def next_bisect_set(record: ShardRecord, missing: int) -> tuple[int, ...]:
    """Which of the `missing` lines (a bitmap) to dispatch next: what is left of `bisect_set`, else the first half.

    No record of the innocent lines is needed: a half that survives is committed, and so is no longer missing.
    """
    left = tuple(line for line in record.bisect_set if missing >> line & 1)
    if left:
        return left
    lines = tuple(bitmaps.lines(missing))
    return lines[: (len(lines) + 1) // 2]


def checkpointed(
    record: ShardRecord,
    *,
    seq: int,
    part: PartRef | None,
    done: int,
    counts: Counts,
    usage: Usage,
    has_dispatched: bool,
    bisect_set: tuple[int, ...] | None = None,
    accused: int | None = None,
    gpu_s: float = 0.0,
    request_s: tuple[int, ...] = (),
    failures: tuple[FailureGroup, ...] = (),
    fingerprints: Iterable[str] = (),
) -> ShardRecord:
    """The record after one more part (None: only a renewal). `done`, `counts` and the rest are of that part alone.

    The shard is `done` with its last line. Progress resets the crash count, except while bisecting, which continues
    until the shard is done or its poison line is found. `accused`: the holder is about to end because of this line:
    that crash counts against the line without asking the holder again, and the next holder runs it alone.
    """
    total = record.counts + counts
    crash_count, crashes_alone = record.crash_count, record.crashes_alone
    if part is not None and (not is_bisecting(record) or poison_line(record) is not None):
        crash_count, crashes_alone = 0, 0
    if accused is not None:
        crash_count, bisect_set, has_dispatched = max(crash_count, CRASHES_BEFORE_BISECT), (accused,), True
    return replace(
        record,
        seq=seq,
        state="done" if total.finished == record.num_lines else "leased",
        parts=record.parts if part is None else (*record.parts, part),
        done=bitmaps.render(bitmaps.parse(record.done) | done),
        counts=total,
        usage=record.usage + usage,
        failures=merged(record.failures, failures) if failures else record.failures,
        gpu_s=round(record.gpu_s + gpu_s, 4),
        request_s=summed(record.request_s, request_s),
        fingerprints=record.fingerprints if part is None else tuple(sorted({*record.fingerprints, *fingerprints})),
        has_dispatched=has_dispatched,
        bisect_set=() if crash_count == 0 else record.bisect_set if bisect_set is None else bisect_set,
        crash_count=crash_count,
        crashes_alone=crashes_alone if bisect_set is None or bisect_set == record.bisect_set else 0,
        is_doubted=accused is not None,
    )


def released(record: ShardRecord, *, seq: int) -> ShardRecord:
    """Released: any runner may claim it at once, and no crash counts."""
    return replace(record, seq=seq, state="open", has_dispatched=False, is_doubted=False)


def closed(record: ShardRecord, *, lease: str, reason: EndReason) -> ShardRecord:
    """Fenced: the holder's next write fails. Committed results stay."""
    return replace(record, state="closed", lease=lease, runner="", epoch=record.epoch + 1, seq=1, reason=reason)


def born_closed(pool: str, n: int, num_lines: int, *, lease: str, reason: EndReason) -> ShardRecord:
    """For a shard that was never claimed."""
    return ShardRecord(pool=pool, n=n, num_lines=num_lines, state="closed", lease=lease, runner="", reason=reason)


def lost(record: ShardRecord, span: Range) -> ShardRecord:
    """`record`, born closed, in place of an unreadable one: its results were stored but are lost.

    If other pools share the range, it is unknown which of its lines were this pool's.
    """
    rejected = bitmaps.parse(span.rejected)
    if record.num_lines != span.num_lines - rejected.bit_count():
        return record
    return replace(record, done=bitmaps.render(((1 << span.num_lines) - 1) & ~rejected))
