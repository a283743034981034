"""The responses in Anthropic's API format, and their conversion from records and settings.

Every key is always present.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel

from batchfile.ledger.records import BatchRecord
from batchfile.ledger.status import BatchSnapshot
from batchfile.lines.formats.stage import timestamp
from batchfile.settings_tables import PoolSettings

from ..http.negotiation import BATCHES
from ..native.schemas import StageCounts
from ..native.serializers import stage_counts
from ..service import SnapshotPage


class RequestCounts(BaseModel):
    """All requests are `processing` until the batch has ended; `counts` is live."""

    processing: int
    succeeded: int
    errored: int
    canceled: int
    expired: int


class MessageBatch(BaseModel):
    """Times are in UTC. `counts` and `updated_at` are additions to Anthropic's format."""

    id: str
    type: Literal["message_batch"] = "message_batch"
    processing_status: Literal["in_progress", "canceling", "ended"]
    request_counts: RequestCounts
    created_at: str
    expires_at: str
    ended_at: str | None
    cancel_initiated_at: str | None
    archived_at: str | None
    results_url: str | None
    counts: StageCounts
    updated_at: str


class MessageBatchPage(BaseModel):
    """Newest first. `has_more`: there are more in the requested direction."""

    data: list[MessageBatch]
    has_more: bool
    first_id: str | None
    last_id: str | None


class DeletedMessageBatch(BaseModel):
    id: str
    type: Literal["message_batch_deleted"] = "message_batch_deleted"


class ErrorObject(BaseModel):
    type: str
    message: str


class ErrorBody(BaseModel):
    """The body of every error response."""

    type: Literal["error"]
    error: ErrorObject
    request_id: str


class ModelInfo(BaseModel):
    """A pool. `model` may also be the name of the pool's model, or an alias."""

    id: str
    type: Literal["model"] = "model"
    display_name: str
    created_at: str
    lifecycle: Literal["active"] = "active"
    line: str | None = None
    capabilities: None = None
    deprecated_at: str | None = None
    retires_at: str | None = None
    max_input_tokens: int
    max_tokens: int


class ModelPage(BaseModel):
    data: list[ModelInfo]
    has_more: bool
    first_id: str | None
    last_id: str | None


UNKNOWN_TIME = timestamp(0)  # the format's value for a model whose release date is unknown


def message_batch(found: BatchSnapshot, own_url: str) -> MessageBatch:
    """`own_url`: the base URL of this service for the caller, without a trailing slash."""
    batch = found.batch
    has_ended = batch.state == "ended"
    return MessageBatch(
        id=batch.batch_id,
        processing_status=_processing_status(batch),
        request_counts=_request_counts(found),
        created_at=timestamp(batch.created_at),
        expires_at=timestamp(batch.expires_at),
        ended_at=_time(batch.ended_at),
        cancel_initiated_at=_time(batch.ending_at) if batch.reason == "canceled" else None,
        archived_at=None,
        results_url=f"{own_url}{BATCHES}/{batch.batch_id}/results" if has_ended and found.is_known else None,
        counts=stage_counts(found.status),
        updated_at=timestamp(max(found.status.updated_at, batch.created_at)),
    )


def page_of(page: SnapshotPage, own_url: str) -> MessageBatchPage:
    data = [message_batch(found, own_url) for found in page.data]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return MessageBatchPage(data=data, has_more=page.has_more, first_id=first, last_id=last)


def model_of(name: str, pool: PoolSettings) -> ModelInfo:
    return ModelInfo(
        id=name,
        display_name=pool.model,
        created_at=UNKNOWN_TIME,
        max_input_tokens=pool.max_model_len,
        max_tokens=pool.max_model_len,
    )


def model_page(models: Sequence[ModelInfo], *, has_more: bool) -> ModelPage:
    first, last = (models[0].id, models[-1].id) if models else (None, None)
    return ModelPage(data=list(models), has_more=has_more, first_id=first, last_id=last)


def _processing_status(batch: BatchRecord) -> Literal["in_progress", "canceling", "ended"]:
    if batch.state == "ended":
        return "ended"
    return "canceling" if batch.reason == "canceled" else "in_progress"


def _request_counts(found: BatchSnapshot) -> RequestCounts:
    total, counts = found.status.total, found.status.counts
    if found.batch.state != "ended":
        return RequestCounts(processing=total, succeeded=0, errored=0, canceled=0, expired=0)
    return RequestCounts(
        processing=total - counts.finished,
        succeeded=counts.succeeded,
        errored=counts.errored,
        canceled=counts.canceled,
        expired=counts.expired,
    )


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else timestamp(seconds)
