"""From what the ledger knows to what the routes answer. Pure."""

from batchfile.inbox.records import inbox_path
from batchfile.ledger.status import BatchStatus
from batchfile.lines.formats.stage import processing_status, stage_counts, timestamp

from . import schemas

PARTLY = "a stored record of this batch cannot be read now: its counts may lack some results"


def stage_status(status: BatchStatus) -> schemas.StageStatus:
    batch = status.batch
    counts = stage_counts(batch.total, status.counts)
    return schemas.StageStatus(
        id=batch.batch_id,
        processing_status=processing_status(batch.state, status.num_records),
        counts=schemas.StageCounts(
            total=counts.total, succeeded=counts.succeeded, errored=counts.errored, pending=counts.pending
        ),
        created_at=timestamp(batch.created_at),
        updated_at=timestamp(max(status.updated_at, batch.created_at)),
    )


def batch(status: BatchStatus) -> schemas.Batch:
    record, counts, usage = status.batch, status.counts, status.usage
    assert record.state != "deleted", "a deleted batch is read as none"
    return schemas.Batch(
        id=record.batch_id,
        state=record.state if status.is_known else "damaged" if record.state == "ended" else "unreadable",
        reason=record.reason if status.is_known else None,
        detail=record.detail or (None if status.problem is None else PARTLY),
        stage=record.stage,
        total=record.total,
        succeeded=counts.succeeded,
        errored=counts.errored,
        canceled=counts.canceled,
        expired=counts.expired,
        pending=status.pending,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cached_tokens=usage.cached_tokens,
        usage_unknown=usage.unknown,
        created_at=record.created_at,
        updated_at=status.updated_at,
        ended_at=record.ended_at if status.is_known else None,
        expires_at=record.expires_at,
        metadata=record.metadata,
        priority=record.priority,
        dialect=record.input.format,
        inbox_path=inbox_path(record),
        pools={
            name: schemas.Share(
                shards=pool.num_shards,
                shards_done=pool.num_done,
                shards_leased=pool.num_leased,
                requests=pool.num_requests,
                requests_finished=pool.num_finished,
            )
            for name, pool in status.pools.items()
        },
    )
