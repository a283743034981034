"""What OpenAI's clients send and get: files, uploads, batches. Optional keys are always there, with null."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from batchfile.types import METADATA_MAX, METADATA_NAME_CHARS_MAX, METADATA_VALUE_CHARS_MAX

EXPIRES_S_MIN = 3600
EXPIRES_S_MAX = 30 * 24 * 3600
UPLOAD_BYTES_MAX = 8 * 1024 * 1024 * 1024  # OpenAI's own
PARTS_MAX = 10_000

_STRICT = ConfigDict(extra="forbid", strict=True)
_Name = Annotated[str, Field(min_length=1, max_length=512)]
_Key = Annotated[str, Field(min_length=1, max_length=METADATA_NAME_CHARS_MAX)]
_Value = Annotated[str, Field(max_length=METADATA_VALUE_CHARS_MAX)]


# Lines of the last one are taken and answered, each with an error that says what is served.
Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]


class ExpiresAfter(BaseModel):
    model_config = _STRICT

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=EXPIRES_S_MIN, le=EXPIRES_S_MAX)]


class CreateBatch(BaseModel):
    model_config = _STRICT

    input_file_id: str
    endpoint: Endpoint
    completion_window: Literal["24h"]
    metadata: Annotated[dict[_Key, _Value], Field(max_length=METADATA_MAX)] | None = None
    output_expires_after: ExpiresAfter | None = None


class CreateUpload(BaseModel):
    model_config = _STRICT

    bytes: Annotated[int, Field(ge=1, le=UPLOAD_BYTES_MAX)]
    filename: _Name
    mime_type: Annotated[str, Field(max_length=255)]
    purpose: Literal["batch"]
    expires_after: ExpiresAfter | None = None


class CompleteUpload(BaseModel):
    model_config = _STRICT

    part_ids: Annotated[list[str], Field(min_length=1, max_length=PARTS_MAX)]
    md5: str | None = None


class File(BaseModel):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"] = "processed"
    status_details: str | None = None


class FilePage(BaseModel):
    object: Literal["list"] = "list"
    data: list[File]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class Upload(BaseModel):
    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled"]
    file: File | None = None


class UploadPart(BaseModel):
    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str


class BatchCounts(BaseModel):
    """`failed` are all that did not succeed."""

    total: int
    completed: int
    failed: int


class CachedTokens(BaseModel):
    cached_tokens: int


class ReasoningTokens(BaseModel):
    reasoning_tokens: int = 0


class BatchUsage(BaseModel):
    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class BatchError(BaseModel):
    code: str
    line: int | None
    message: str
    param: str | None


class BatchErrors(BaseModel):
    object: Literal["list"] = "list"
    data: list[BatchError]


BatchState = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]


class Batch(BaseModel):
    """Times in whole seconds since the epoch. Counts and usage are live.

    `usage` is null where an endpoint did not tell the tokens of some results.
    """

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None = None
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str = "24h"
    status: BatchState
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: BatchCounts
    usage: BatchUsage | None
    metadata: dict[str, str] | None


class BatchPage(BaseModel):
    object: Literal["list"] = "list"
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool
