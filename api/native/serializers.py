"""Converts the status of a batch to responses. Pure."""

from batchfile.inbox.records import inbox_path
from batchfile.ledger.batch_status import BatchStatus
from batchfile.ledger.status import DerivedStatus
from batchfile.lines.formats.stage import processing_status, stage_counts, timestamp

from . import schemas

PARTLY = "a stored record of this batch cannot be read; its counts may be too low"


def stage_status(status: DerivedStatus) -> schemas.StageStatus:
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


def batch(status: DerivedStatus) -> BatchStatus:
    detail = status.batch.detail or (None if status.problem is None else PARTLY)
    return status.shown(detail=detail, inbox_path=inbox_path(status.batch))
