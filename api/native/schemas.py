"""The responses of the native API and the stage contract. The latter have exactly these keys."""

from typing import Any, Literal

from pydantic import BaseModel


class BatchId(BaseModel):
    id: str


class StageCounts(BaseModel):
    total: int
    succeeded: int
    errored: int
    pending: int


class StageStatus(BaseModel):
    """Times are in UTC, in whole seconds. Counts never decrease, and `processing_status` never goes back."""

    id: str
    processing_status: Literal["collected", "submitted", "processing", "ended"]
    counts: StageCounts
    created_at: str
    updated_at: str


class Text(BaseModel):
    type: Literal["text"]
    text: str


class ToolUse(BaseModel):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class StageMessage(BaseModel):
    """Without thinking, because callers take the first block for the text. Native results have it."""

    content: list[Text | ToolUse]


class StageUsage(BaseModel):
    """Both are null if an HTTP endpoint did not report them."""

    input_tokens: int | None
    output_tokens: int | None


class StageError(BaseModel):
    type: str
    message: str


class StageResult(BaseModel):
    """A message and its usage, or an error."""

    custom_id: str
    status: Literal["succeeded", "errored"]
    message: StageMessage | None
    usage: StageUsage | None
    error: StageError | None


class StageResults(BaseModel):
    """Results in input order."""

    results: list[StageResult]


class Deleted(BaseModel):
    id: str
    deleted: Literal[True] = True


class Model(BaseModel):
    """A pool, in OpenAI's API format."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "batchfile"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]
