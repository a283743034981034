"""What the records of a batch add up to, and the status that is derived from them. Pure."""

from typing import NamedTuple

from batchfile.ledger.batch_status import BatchStatus, PoolProgress
from batchfile.ledger.records import BatchRecord, ShardRecord
from batchfile.lines.failures import with_advice
from batchfile.types import Counts, FailureGroup, Usage


class Sums(NamedTuple):
    """What shard records add up to."""

    num_records: int = 0
    num_done: int = 0
    num_leased: int = 0
    counts: Counts = Counts()
    usage: Usage = Usage()
    gpu_s: float = 0.0

    def replaced(self, old: "Sums", new: "Sums") -> "Sums":
        """The sums after a record has changed from `old` to `new`."""
        return Sums(
            num_records=self.num_records - old.num_records + new.num_records,
            num_done=self.num_done - old.num_done + new.num_done,
            num_leased=self.num_leased - old.num_leased + new.num_leased,
            counts=self.counts - old.counts + new.counts,
            usage=self.usage - old.usage + new.usage,
            gpu_s=self.gpu_s - old.gpu_s + new.gpu_s,
        )


NO_SUMS = Sums()


def sums_of(record: ShardRecord) -> Sums:
    return Sums(
        num_records=1,
        num_done=record.state in {"done", "closed"},
        num_leased=record.state == "leased",
        counts=record.counts,
        usage=record.usage,
        gpu_s=record.gpu_s,
    )


def status_of(
    batch: BatchRecord,
    total: Sums,
    updated_at: float,
    failures: tuple[FailureGroup, ...] = (),
    pools: dict[str, PoolProgress] | None = None,
) -> BatchStatus:
    assert batch.state != "deleted", "a deleted batch has no status"
    counts, usage = total.counts, total.usage
    return BatchStatus(
        batch_id=batch.batch_id,
        state=batch.state,
        reason=batch.reason,
        detail=batch.detail,
        stage=batch.stage,
        total=batch.total,
        succeeded=counts.succeeded,
        errored=counts.errored,
        canceled=counts.canceled,
        expired=counts.expired,
        rejected=counts.rejected,
        failures=with_advice(failures),
        gpu_s=round(total.gpu_s, 3),
        pending=batch.total - counts.finished,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cached_tokens=usage.cached_tokens,
        usage_unknown=usage.unknown,
        created_at=batch.created_at,
        updated_at=updated_at,
        ended_at=batch.ended_at,
        expires_at=batch.expires_at,
        metadata=batch.metadata,
        priority=batch.priority,
        dialect=batch.input.format,
        inbox_path=None,  # known to the inbox
        pools=pools or {},
        reused=batch.reused,
        reuse_note=batch.reuse_note,
        profile=batch.profile,
    )


def progress_of(total: Sums, num_shards: int, num_requests: int) -> PoolProgress:
    return PoolProgress(
        num_shards=num_shards,
        num_done=total.num_done,
        num_leased=total.num_leased,
        num_requests=num_requests,
        num_finished=total.counts.finished,
    )
