"""Files, uploads and batches in OpenAI's API format, and their conversion from records.

Optional keys are always present, with null.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from batchfile.endpoints import KINDS
from batchfile.files.stored_files import FileRecord, file_input
from batchfile.files.uploads import UploadRecord
from batchfile.ledger.records import BatchRecord
from batchfile.ledger.status import BatchSnapshot
from batchfile.types import METADATA_MAX, METADATA_NAME_CHARS_MAX, METADATA_VALUE_CHARS_MAX, REUSE_CHARS_MAX, Usage

EXPIRES_S_MIN = 3600
EXPIRES_S_MAX = 30 * 24 * 3600
UPLOAD_BYTES_MAX = 8 * 1024 * 1024 * 1024  # OpenAI's limit
PARTS_MAX = 10_000

Kind = Literal["output", "errors"]  # the two files of an ended batch

_STRICT = ConfigDict(extra="forbid", strict=True)
_Name = Annotated[str, Field(min_length=1, max_length=512)]
_Key = Annotated[str, Field(min_length=1, max_length=METADATA_NAME_CHARS_MAX)]
_Value = Annotated[str, Field(max_length=METADATA_VALUE_CHARS_MAX)]


# The rest are Azure's and vLLM's names. Not a Literal, because the message for another value says what to do instead.
ENDPOINTS = (*KINDS, "/chat/completions", "/score", "/rerank", "/v2/rerank", "/classify", "/pooling")


class ExpiresAfter(BaseModel):
    model_config = _STRICT

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=EXPIRES_S_MIN, le=EXPIRES_S_MAX)]


class CreateBatch(BaseModel):
    model_config = _STRICT

    input_file_id: str
    endpoint: Annotated[str, Field(json_schema_extra={"enum": [*ENDPOINTS]})]
    completion_window: Literal["24h"]
    metadata: Annotated[dict[_Key, _Value], Field(max_length=METADATA_MAX)] | None = None
    output_expires_after: ExpiresAfter | None = None
    reuse: Annotated[str, Field(max_length=REUSE_CHARS_MAX)] | None = None  # as in the native API


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
    """`failed` counts all requests that did not succeed."""

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
    """Times are in whole seconds since the epoch. Counts and usage are live.

    `usage` is null if an endpoint did not report the tokens of some results.
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


_ENDED: dict[str | None, BatchState] = {
    "completed": "completed",
    "canceled": "cancelled",
    "expired": "expired",
}


def file_of(record: FileRecord) -> File:
    return File(
        id=record.file_id,
        bytes=record.size,
        created_at=int(record.created_at),
        expires_at=int(record.expires_at),
        filename=record.filename,
        purpose="batch",
    )


def upload_of(record: UploadRecord) -> Upload:
    return Upload(
        id=record.upload_id,
        bytes=record.size,
        created_at=int(record.created_at),
        expires_at=int(record.expires_at),
        filename=record.filename,
        purpose=record.purpose,
        status=record.state,
        file=None if record.file is None else file_of(record.file),
    )


def batch_of(found: BatchSnapshot) -> Batch:
    """Converts a batch that was created from a file."""
    record, counts, usage = found.batch, found.status.counts, found.status.usage
    made_of = file_input(record)
    assert made_of is not None, "not a batch created from a file"
    state = _state(found)
    ended_at = _seconds(record.ended_at)
    is_canceled = record.reason == "canceled"
    return Batch(
        id=record.batch_id,
        endpoint=made_of.endpoint,
        errors=_errors(record),
        input_file_id=made_of.file_id,
        status=state,
        output_file_id=output_file_id(record, "output"),
        error_file_id=output_file_id(record, "errors"),
        created_at=int(record.created_at),
        in_progress_at=_seconds(record.planned_at),
        expires_at=int(record.expires_at),
        finalizing_at=int(found.status.updated_at) if state in {"finalizing", "completed"} else None,
        completed_at=ended_at if state == "completed" else None,
        failed_at=ended_at if state == "failed" else None,
        expired_at=ended_at if state == "expired" else None,
        cancelling_at=_seconds(record.ending_at) if is_canceled else None,
        cancelled_at=ended_at if is_canceled else None,
        request_counts=BatchCounts(
            total=record.total,
            completed=counts.succeeded,
            failed=counts.finished - counts.succeeded,
        ),
        usage=_usage(usage),
        metadata=record.metadata or None,
    )


def output_file_id(batch: BatchRecord, kind: Kind) -> str | None:
    """None if the batch has not ended, or has nothing for this file."""
    if batch.state != "ended" or batch.results is None:
        return None
    num_succeeded, num_all = batch.counts.succeeded, batch.counts.finished
    if (num_succeeded if kind == "output" else num_all - num_succeeded) == 0:
        return None
    return f"file-{batch.batch_id.removeprefix('batch_')}-{kind}"


def _usage(usage: Usage) -> BatchUsage | None:
    if usage.unknown:
        return None
    return BatchUsage(
        input_tokens=usage.input_tokens,
        input_tokens_details=CachedTokens(cached_tokens=usage.cached_tokens),
        output_tokens=usage.output_tokens,
        output_tokens_details=ReasoningTokens(),
        total_tokens=usage.input_tokens + usage.output_tokens,
    )


def _state(found: BatchSnapshot) -> BatchState:
    record = found.batch
    if record.state == "planning":
        return "validating"
    if record.state == "open":
        return "in_progress" if found.is_running else "finalizing"
    if record.state == "ending":
        return "cancelling" if record.reason == "canceled" else "finalizing"
    return _ENDED.get(record.reason, "failed")


def _errors(record: BatchRecord) -> BatchErrors | None:
    found = [
        BatchError(code=error.code, line=error.line, message=error.message, param=error.param)
        for error in record.problems
    ]
    if not found and record.reason in {"failed", "input_changed"} and record.state == "ended":
        why = record.detail or "The input file was changed while the batch ran."
        found = [BatchError(code=record.reason, line=None, message=why, param=None)]
    return BatchErrors(data=found) if found else None


def _seconds(at: float | None) -> int | None:
    return None if at is None else int(at)
