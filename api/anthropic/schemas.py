"""What the routes answer in Anthropic's dialect, as the OpenAPI document shows it. Every key is always there."""

from typing import Literal

from pydantic import BaseModel

from ..native.schemas import StageCounts


class RequestCounts(BaseModel):
    """All requests are `processing` until the batch has ended; `counts` has the live figures."""

    processing: int
    succeeded: int
    errored: int
    canceled: int
    expired: int


class MessageBatch(BaseModel):
    """Times in UTC. `counts` and `updated_at` are ours."""

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
    """Newest first. `has_more`: beyond this page, in the direction that was asked for."""

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
    """Every answer that is no success."""

    type: Literal["error"]
    error: ErrorObject
    request_id: str


class ModelInfo(BaseModel):
    """A pool. Anything that `model` may say of it, its model's name or an alias, finds it."""

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
