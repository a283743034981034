"""What is stored of files and uploads, and what a batch keeps of the file that it was made of."""

from dataclasses import dataclass
from typing import Literal

from batchfile.errors import BatchDamaged, InvalidFile
from batchfile.ledger.base import Ledger
from batchfile.ledger.origin import Source, facts_of, origin_of
from batchfile.ledger.records import VERSION, BatchRecord, InputRef, PlanRules

UploadState = Literal["pending", "completed", "cancelled"]

_KIND = "file"
_ID_CHARS = len("batch_") + 32


@dataclass(frozen=True, slots=True, kw_only=True)
class FileInput:
    """The file that a batch was made of, and what every line of it asks for. Empty: nobody knows any more."""

    file_id: str
    endpoint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """A file that a tenant stored; its bytes are the object `key`. Never rewritten. Times: epoch seconds."""

    file_id: str
    tenant: str
    filename: str
    purpose: str
    key: str
    size: int
    sha256: str
    created_at: float
    expires_at: float
    version: int = VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadRecord:
    """A file that comes in parts. `size` in bytes of the whole, as announced; `file_kept_s` of what it becomes."""

    upload_id: str
    tenant: str
    filename: str
    mime_type: str
    purpose: str
    size: int
    created_at: float
    expires_at: float
    file_kept_s: float
    state: UploadState = "pending"
    part_ids: tuple[str, ...] = ()
    file: FileRecord | None = None
    write_id: str = ""
    version: int = VERSION


def file_input(batch: BatchRecord) -> FileInput | None:
    """None where the batch was not made of a stored file."""
    if batch.origin is None and not batch.input.key and len(batch.batch_id) == _ID_CHARS:
        # Its record is damaged, and the form of the id tells.
        return FileInput(file_id="", endpoint="")
    try:
        return facts_of(batch, _KIND, FileInput)
    except BatchDamaged:  # it is shown all the same
        return FileInput(file_id=batch.origin.name if batch.origin else "", endpoint="")


def source(
    ledger: Ledger, file: FileRecord, *, endpoint: str, requests_max: int, kept_s: float | None = None
) -> Source:
    """What a batch is made of whose every line is a request to `endpoint`. `kept_s`: of its results.

    Raises: InvalidFile where the bytes are gone; StoreUnavailable.
    """
    entry = ledger.store.head(file.key)
    if entry is None:
        raise InvalidFile(f"the bytes of {file.file_id} are gone; upload the file again")
    return Source(
        input=InputRef(key=file.key, etag=entry.etag, size=file.size, sha256=file.sha256, format="openai"),
        origin=origin_of(_KIND, file.file_id, FileInput(file_id=file.file_id, endpoint=endpoint)),
        rules=PlanRules(endpoint=endpoint, requests_max=requests_max),
        kept_s=kept_s,
    )
