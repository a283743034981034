"""Stored files of a tenant: written once, read, listed, deleted and turned into batches. It knows no HTTP and does not
parse the files.

A document names the bytes and is written last. Once it is deleted, the file cannot be found; its bytes are kept as long
as a batch that was made from it may run.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from batchfile.errors import BatchDamaged, InvalidFile, RecordDamaged, StoreError, TooLarge
from batchfile.files.keys import file_data_key, file_id_of, file_key, file_prefix, files_prefix, is_file_id, new_file_id
from batchfile.ledger.base import Ledger
from batchfile.ledger.cas import load
from batchfile.ledger.records import (
    VERSION,
    BatchRecord,
    InputRef,
    PendingInput,
    PlanRules,
    encode,
    facts_of,
    origin_of,
)
from batchfile.ledger.retention import remove_after

MARGIN_S = 3600.0  # an expired batch reads its input once more
_KIND = "file"
_ID_CHARS = len("batch_") + 32


@dataclass(frozen=True, slots=True, kw_only=True)
class FileInput:
    """The file that a batch was made from, and the endpoint of all its lines. Empty: unknown by now."""

    file_id: str
    endpoint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """A tenant's stored file; its bytes are the object `key`. Never rewritten. Times: epoch seconds."""

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


def store_file(
    ledger: Ledger,
    tenant: str,
    chunks: Iterable[bytes],
    *,
    filename: str,
    purpose: str,
    kept_s: float,
    bytes_max: int,
    is_published: bool = True,
) -> FileRecord:
    """Store the bytes, then the document. Not `is_published`: the file does not exist before `publish`.

    Raises: TooLarge, and nothing is kept; StoreUnavailable.
    """
    now = ledger.clock.now()
    file_id = new_file_id(now, ledger.new_id())
    remove_after(ledger, file_prefix(tenant, file_id), kept_s + _in_use_s(ledger))
    key = file_data_key(tenant, file_id, ledger.new_id()[:12])
    digest = hashlib.sha256()
    size = 0
    with ledger.store.writer(key, is_new=True) as writer:
        for chunk in chunks:
            size += len(chunk)
            if size > bytes_max:
                raise TooLarge(f"file: is larger than {bytes_max:,} bytes; split the file")
            digest.update(chunk)
            writer.write(chunk)
        writer.commit()
    record = FileRecord(
        file_id=file_id,
        tenant=tenant,
        filename=filename,
        purpose=purpose,
        key=key,
        size=size,
        sha256=digest.hexdigest(),
        created_at=now,
        expires_at=now + kept_s,
    )
    if is_published:
        publish(ledger, record)
    return record


def publish(ledger: Ledger, record: FileRecord) -> None:
    """The file exists from now on. Idempotent."""
    ledger.store.put(file_key(record.tenant, record.file_id), encode(record))


def read_file(ledger: Ledger, tenant: str, file_id: str) -> FileRecord | None:
    """Returns nothing for a missing or deleted file. By the store's clock: the local one may be ahead."""
    if not is_file_id(file_id):
        return None
    found = load(ledger, file_key(tenant, file_id), FileRecord)
    if found is None:
        return None
    file = found.record
    is_over = ledger.clock.now() >= file.expires_at and found.age_s >= file.expires_at - file.created_at
    return None if is_over else file


def list_file_ids(ledger: Ledger, tenant: str, *, after: str | None = None) -> Iterator[str]:
    """Newest first; `after`: an id, whose file may be deleted. Includes expired files."""
    prefix = files_prefix(tenant)
    start = "" if after is None else file_key(tenant, after)
    for entry in ledger.store.list(f"{prefix}file-", after=start):
        file_id = file_id_of(entry.key)
        if file_id is not None and is_file_id(file_id):
            yield file_id


def remove_file(ledger: Ledger, tenant: str, file_id: str) -> bool:
    """Make a file unreadable at once; its bytes are removed when no batch can need them. False: not found.

    The bytes of a readable file are scheduled last, so that they are removed by their expiry if that fails. A file with
    a damaged document is deleted like any other. Raises: RecordNewer.
    """
    with suppress(RecordDamaged):
        if read_file(ledger, tenant, file_id) is None:
            return False
    ledger.store.delete(file_key(tenant, file_id))
    with suppress(StoreError):
        remove_after(ledger, file_prefix(tenant, file_id), _in_use_s(ledger))
    return True


def _in_use_s(ledger: Ledger) -> float:
    return ledger.limits.completion_window_s + MARGIN_S


def file_input(batch: BatchRecord) -> FileInput | None:
    """None if the batch was not made from a stored file."""
    if batch.origin is None and not batch.input.key and len(batch.batch_id) == _ID_CHARS:
        # Its record is damaged, but the form of the id tells.
        return FileInput(file_id="", endpoint="")
    try:
        return facts_of(batch, _KIND, FileInput)
    except BatchDamaged:  # it is shown nevertheless
        return FileInput(file_id=batch.origin.name if batch.origin else "", endpoint="")


def source(
    ledger: Ledger, file: FileRecord, *, endpoint: str, requests_max: int, kept_s: float | None = None
) -> PendingInput:
    """The source of a batch in which every line is a request to `endpoint`. `kept_s`: of its results.

    Raises: InvalidFile if the bytes are gone; StoreUnavailable.
    """
    entry = ledger.store.head(file.key)
    if entry is None:
        raise InvalidFile(f"the content of {file.file_id} is missing; upload the file again")
    return PendingInput(
        input=InputRef(key=file.key, etag=entry.etag, size=file.size, sha256=file.sha256, format="openai"),
        origin=origin_of(_KIND, file.file_id, FileInput(file_id=file.file_id, endpoint=endpoint)),
        rules=PlanRules(endpoint=endpoint, requests_max=requests_max),
        kept_s=kept_s,
    )
