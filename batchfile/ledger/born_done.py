"""Shard records that a planner writes for lines that need no runner. Nothing replaces a record that is done."""

from collections.abc import Sequence
from dataclasses import replace

from batchfile.errors import BatchDamaged
from batchfile.ledger import bitmaps, keys
from batchfile.ledger.base import Ledger
from batchfile.ledger.cas import Lost, swap
from batchfile.ledger.records import PartRef, Range, ShardRecord
from batchfile.types import Counts, FailureGroup, ResultStatus


def put_done(
    ledger: Ledger,
    batch_id: str,
    pool: str,
    n: int,
    span: Range,
    parts: Sequence[PartRef],
    done: int,
    status: ResultStatus,
    failures: tuple[FailureGroup, ...] = (),
) -> ShardRecord:
    """A record that is born done, for lines that the planner rejected or reused. Written before the batch is committed.

    `done`: a bitmap of the lines, all of which have this status. Returns the record in force: that of an earlier
    attempt to plan this batch stands. Raises: as `check_cut`.
    """
    num = done.bit_count()
    counts = Counts(**{status: num})
    record = ShardRecord(
        pool=pool,
        n=n,
        num_lines=num,
        state="done",
        lease=_cut_id(span),
        runner="",
        done=bitmaps.render(done),
        parts=tuple(parts),
        counts=replace(counts, rejected=counts.errored),
        failures=failures,
    )
    written = swap(ledger, keys.shard_key(batch_id, pool, n), record, None)
    found = written.found if isinstance(written, Lost) else written
    settled = record if found is None else found.record
    check_cut(batch_id, settled, span)
    return settled


def check_cut(batch_id: str, record: ShardRecord, span: Range) -> None:
    """Is the record, which is born done, about this range? Raises: BatchDamaged, because nothing replaces it."""
    if record.lease != _cut_id(span):
        raise BatchDamaged(
            f"{batch_id}: an interrupted attempt to create it has divided its input in another way; submit it again "
            "as a new batch"
        )


def _cut_id(span: Range) -> str:
    """Instead of a lease. Each attempt to plan a batch has the same, if it cuts the input alike."""
    return f"bytes-{span.start}-{span.end}"
