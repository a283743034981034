"""Converts the status of a batch to responses. Pure."""

import msgspec

from batchfile.inbox.records import inbox_path
from batchfile.ledger.batch_status import BatchStatus
from batchfile.ledger.status import BatchSnapshot
from batchfile.lines.formats.stage import processing_status, timestamp

from . import schemas

PARTLY = "a stored record of this batch cannot be read; its counts may be too low"


def stage_status(found: BatchSnapshot) -> schemas.StageStatus:
    batch = found.batch
    return schemas.StageStatus(
        id=batch.batch_id,
        processing_status=processing_status(batch.state, found.num_records),
        counts=stage_counts(found.status),
        created_at=timestamp(batch.created_at),
        updated_at=timestamp(max(found.status.updated_at, batch.created_at)),
    )


def stage_counts(status: BatchStatus) -> schemas.StageCounts:
    """Every finished request that did not succeed is errored there."""
    succeeded, finished = status.succeeded, status.counts.finished
    return schemas.StageCounts(
        total=status.total, succeeded=succeeded, errored=finished - succeeded, pending=status.pending
    )


def batch_status(found: BatchSnapshot, *, is_listed: bool = False) -> BatchStatus:
    detail = found.status.detail or (None if found.problem is None else PARTLY)
    profile = None if is_listed else found.status.profile
    return msgspec.structs.replace(found.status, detail=detail, inbox_path=inbox_path(found.batch), profile=profile)
