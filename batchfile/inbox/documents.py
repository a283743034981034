"""The documents in the outbox about a dropped file: its status, its receipt or the reason of its rejection. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from batchfile import __version__
from batchfile.errors import UNREADABLE
from batchfile.inbox.records import DroppedFile
from batchfile.ledger.records import BatchRecord, BatchState, FileRef, LineError
from batchfile.lines.failures import with_advice
from batchfile.types import Counts, FailureGroup, Usage

RESULTS = "results.jsonl"
RESULTS_PARQUET = "results.parquet"
ERRORS = "errors.jsonl"
REASONS = "reasons.jsonl"
STATUS = "status.json"
RECEIPT = "receipt.json"
REJECTED = "rejected.json"
KINDS = (RESULTS, RESULTS_PARQUET, ERRORS, REASONS, STATUS, RECEIPT, REJECTED)

DocumentType = TypeVar("DocumentType")


@dataclass(frozen=True, slots=True, kw_only=True)
class InputVersion:
    """`etag` and `modified_at` (epoch seconds, by the store's clock): the version. `sha256`: of the requests as they
    ran; None if they were never read to the end.

    `moved_to`: where the file is now, if it was to be moved.
    """

    path: str
    etag: str
    modified_at: float
    sha256: str | None = None
    requests: int | None = None
    moved_to: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """`sha256` is of its bytes. Also used in the receipts of local runs."""

    path: str
    bytes: int
    sha256: str
    lines: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolFacts:
    """The pool that answered. `engines`: of its live runners when the receipt was written, if any. `commits`: of the
    models that these loaded from a hub, as `name@commit`."""

    model: str
    requests: int
    engines: tuple[str, ...] = ()
    commits: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxStatus:
    """`status.json` of a dropped file: unlike a `BatchStatus`, it has the version of the file. Times: epoch seconds."""

    batch_id: str
    state: BatchState
    reason: str | None
    input: InputVersion
    total: int
    counts: Counts
    usage: Usage
    created_at: float
    expires_at: float
    updated_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxReceipt:
    """`receipt.json` of a dropped file, written last; the `Receipt` of a local run is about its output.

    `seconds`: from the claim of the file to the end of its batch. `gpu_seconds`: of the GPUs while they worked for it;
    None if no GPU is known (say, for an endpoint). `reasons`: why each request in `errors` did not succeed; `failures`:
    the most frequent reasons. `reused`: id of an earlier batch -> how many of its results were taken over, at no cost;
    `reuse_note`: why none were, or not from some batch, where the options asked for it.
    """

    batch_id: str
    reason: str
    detail: str | None
    stage: str | None
    pools: dict[str, PoolFacts]
    input: InputVersion
    results: FileFacts | None
    results_parquet: FileFacts | None
    errors: FileFacts | None
    counts: Counts
    usage: Usage
    created_at: float
    planned_at: float | None
    ended_at: float | None
    seconds: float
    gpu_seconds: float | None
    batchfile_version: str
    reasons: FileFacts | None = None
    failures: tuple[FailureGroup, ...] = ()
    reused: dict[str, int] = field(default_factory=dict)
    reuse_note: str | None = None
    version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxRejection:
    """`rejected.json`: why a file was rejected, or its batch failed. `batch_id` None: it was rejected unread."""

    batch_id: str | None
    input: InputVersion
    message: str
    errors: tuple[LineError, ...]


Document = OutboxStatus | OutboxReceipt | OutboxRejection


@dataclass(frozen=True, slots=True, kw_only=True)
class AnyDocument:
    """Common to all documents: the version of the file."""

    input: InputVersion


def status_of(batch: BatchRecord, dropped: DroppedFile, counts: Counts, usage: Usage, now: float) -> OutboxStatus:
    return OutboxStatus(
        batch_id=batch.batch_id,
        state=batch.state,
        reason=batch.reason,
        input=input_of(batch, dropped),
        total=batch.total,
        counts=counts,
        usage=usage,
        created_at=batch.created_at,
        expires_at=batch.expires_at,
        updated_at=batch.ended_at or now,
    )


def receipt_of(
    batch: BatchRecord,
    dropped: DroppedFile,
    pools: dict[str, PoolFacts],
    written: Mapping[str, FileRef],
    moved_to: str | None,
) -> OutboxReceipt:
    """`written`: the files in the outbox, by kind."""
    files = {kind: stored_file(ref) for kind, ref in written.items()}
    return OutboxReceipt(
        batch_id=batch.batch_id,
        reason=batch.reason or "completed",
        detail=batch.detail,
        stage=batch.stage,
        pools=pools,
        input=input_of(batch, dropped, moved_to),
        results=files.get(RESULTS),
        results_parquet=files.get(RESULTS_PARQUET),
        errors=files.get(ERRORS),
        counts=batch.counts,
        usage=batch.usage,
        created_at=batch.created_at,
        planned_at=batch.planned_at,
        ended_at=batch.ended_at,
        seconds=round((batch.ended_at or batch.created_at) - batch.created_at, 3),
        gpu_seconds=batch.gpu_s or None,
        batchfile_version=__version__,
        reasons=files.get(REASONS),
        failures=with_advice(batch.failures),
        reused=batch.reused,
        reuse_note=batch.reuse_note,
    )


def rejected_of(batch: BatchRecord, dropped: DroppedFile) -> OutboxRejection:
    return OutboxRejection(
        batch_id=batch.batch_id,
        input=input_of(batch, dropped),
        message=batch.detail or "the file cannot be read",
        errors=batch.problems,
    )


def input_of(batch: BatchRecord, dropped: DroppedFile, moved_to: str | None = None) -> InputVersion:
    is_planned = bool(batch.plan_key)
    return InputVersion(
        path=dropped.key,
        etag=dropped.etag,
        modified_at=dropped.modified_at,
        sha256=batch.input.sha256 if is_planned else None,
        requests=batch.total if is_planned else None,
        moved_to=moved_to,
    )


def encode(document: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def read(data: bytes, kind: type[DocumentType]) -> DocumentType | None:
    """None if it is not one of our documents."""
    try:
        return msgspec.json.decode(data, type=kind)
    except UNREADABLE:
        return None


def stored_file(ref: FileRef) -> FileFacts:
    """A file that stays in the store."""
    return FileFacts(path=ref.key, bytes=ref.size, sha256=ref.sha256, lines=ref.num_lines)
