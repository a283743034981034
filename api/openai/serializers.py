"""From what is stored to what OpenAI's clients read. Pure."""

from batchfile.files.stored_files import FileRecord, file_input
from batchfile.files.uploads import UploadRecord
from batchfile.ledger.records import BatchRecord
from batchfile.ledger.status import BatchStatus
from batchfile.types import Usage

from . import schemas as shapes
from .output_files import output_file_id

_ENDED: dict[str | None, shapes.BatchState] = {
    "completed": "completed",
    "canceled": "cancelled",
    "expired": "expired",
}


def file(record: FileRecord) -> shapes.File:
    return shapes.File(
        id=record.file_id,
        bytes=record.size,
        created_at=int(record.created_at),
        expires_at=int(record.expires_at),
        filename=record.filename,
        purpose="batch",
    )


def upload(record: UploadRecord) -> shapes.Upload:
    return shapes.Upload(
        id=record.upload_id,
        bytes=record.size,
        created_at=int(record.created_at),
        expires_at=int(record.expires_at),
        filename=record.filename,
        purpose=record.purpose,
        status=record.state,
        file=None if record.file is None else file(record.file),
    )


def batch(status: BatchStatus) -> shapes.Batch:
    """Of a batch that was made of a file."""
    record, counts, usage = status.batch, status.counts, status.usage
    made_of = file_input(record)
    assert made_of is not None, "other batches have no such view"
    state = _state(status)
    ended_at = _seconds(record.ended_at)
    is_canceled = record.reason == "canceled"
    return shapes.Batch(
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
        finalizing_at=int(status.updated_at) if state in {"finalizing", "completed"} else None,
        completed_at=ended_at if state == "completed" else None,
        failed_at=ended_at if state == "failed" else None,
        expired_at=ended_at if state == "expired" else None,
        cancelling_at=_seconds(record.ending_at) if is_canceled else None,
        cancelled_at=ended_at if is_canceled else None,
        request_counts=shapes.BatchCounts(
            total=record.total,
            completed=counts.succeeded,
            failed=counts.finished - counts.succeeded,
        ),
        usage=_usage(usage),
        metadata=record.metadata or None,
    )


def _usage(usage: Usage) -> shapes.BatchUsage | None:
    if usage.unknown:
        return None
    return shapes.BatchUsage(
        input_tokens=usage.input_tokens,
        input_tokens_details=shapes.CachedTokens(cached_tokens=usage.cached_tokens),
        output_tokens=usage.output_tokens,
        output_tokens_details=shapes.ReasoningTokens(),
        total_tokens=usage.input_tokens + usage.output_tokens,
    )


def _state(status: BatchStatus) -> shapes.BatchState:
    record = status.batch
    if record.state == "planning":
        return "validating"
    if record.state == "open":
        return "in_progress" if status.pending > 0 else "finalizing"
    if record.state == "ending":
        return "cancelling" if record.reason == "canceled" else "finalizing"
    return _ENDED.get(record.reason, "failed")


def _errors(record: BatchRecord) -> shapes.BatchErrors | None:
    found = [
        shapes.BatchError(code=error.code, line=error.line, message=error.message, param=error.param)
        for error in record.problems
    ]
    if not found and record.reason in {"failed", "input_changed"} and record.state == "ended":
        why = record.detail or "The input file was changed while the batch ran."
        found = [shapes.BatchError(code=record.reason, line=None, message=why, param=None)]
    return shapes.BatchErrors(data=found) if found else None


def _seconds(at: float | None) -> int | None:
    return None if at is None else int(at)
