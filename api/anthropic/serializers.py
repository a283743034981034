"""From what the ledger and the settings know to what Anthropic's dialect shows. Pure."""

from collections.abc import Sequence
from typing import Literal

from batchfile.ledger.records import BatchRecord
from batchfile.ledger.status import BatchStatus
from batchfile.lines.formats.stage import stage_counts, timestamp
from batchfile.settings_tables import Pool

from ..http.negotiation import BATCHES
from ..native.schemas import StageCounts
from ..service import Page
from . import schemas as shapes

UNKNOWN_TIME = timestamp(0)  # what the format has for a model whose release is not known


def message_batch(status: BatchStatus, own_url: str) -> shapes.MessageBatch:
    """`own_url`: where this service is for the caller, without a slash at its end."""
    batch = status.batch
    counts = stage_counts(batch.total, status.counts)
    has_ended = batch.state == "ended"
    return shapes.MessageBatch(
        id=batch.batch_id,
        processing_status=_processing_status(batch),
        request_counts=_request_counts(status),
        created_at=timestamp(batch.created_at),
        expires_at=timestamp(batch.expires_at),
        ended_at=_time(batch.ended_at),
        cancel_initiated_at=_time(batch.ending_at) if batch.reason == "canceled" else None,
        archived_at=None,
        results_url=f"{own_url}{BATCHES}/{batch.batch_id}/results" if has_ended and status.is_known else None,
        counts=StageCounts(
            total=counts.total, succeeded=counts.succeeded, errored=counts.errored, pending=counts.pending
        ),
        updated_at=timestamp(max(status.updated_at, batch.created_at)),
    )


def page(found: Page, own_url: str) -> shapes.MessageBatchPage:
    data = [message_batch(status, own_url) for status in found.data]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return shapes.MessageBatchPage(data=data, has_more=found.has_more, first_id=first, last_id=last)


def model(name: str, pool: Pool) -> shapes.ModelInfo:
    return shapes.ModelInfo(
        id=name,
        display_name=pool.model,
        created_at=UNKNOWN_TIME,
        max_input_tokens=pool.max_model_len,
        max_tokens=pool.max_model_len,
    )


def model_page(models: Sequence[shapes.ModelInfo], *, has_more: bool) -> shapes.ModelPage:
    first, last = (models[0].id, models[-1].id) if models else (None, None)
    return shapes.ModelPage(data=list(models), has_more=has_more, first_id=first, last_id=last)


def _processing_status(batch: BatchRecord) -> Literal["in_progress", "canceling", "ended"]:
    if batch.state == "ended":
        return "ended"
    return "canceling" if batch.reason == "canceled" else "in_progress"


def _request_counts(status: BatchStatus) -> shapes.RequestCounts:
    total, counts = status.batch.total, status.counts
    if status.batch.state != "ended":
        return shapes.RequestCounts(processing=total, succeeded=0, errored=0, canceled=0, expired=0)
    return shapes.RequestCounts(
        processing=total - counts.finished,
        succeeded=counts.succeeded,
        errored=counts.errored,
        canceled=counts.canceled,
        expired=counts.expired,
    )


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else timestamp(seconds)
