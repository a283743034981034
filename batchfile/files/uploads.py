"""Uploads a file in parts: start, add parts in any order, complete in the order that the user names, or cancel.

One conditional write of the record decides whether it is completed or canceled. It knows no HTTP.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from batchfile.errors import InvalidFile, ObjectChanged, ObjectMissing, StoreError, TooLarge
from batchfile.files.keys import (
    is_part_id,
    is_upload_id,
    upload_key,
    upload_part_key,
    upload_prefix,
    upload_published_key,
)
from batchfile.files.stored_files import FileRecord, publish, store_file
from batchfile.ledger.base import Ledger
from batchfile.ledger.cas import Lost, Stored, load, swap
from batchfile.ledger.records import VERSION
from batchfile.ledger.retention import remove_after

UPLOAD_S = 3600.0  # then a pending upload can no longer be completed
STORED_SHARE_MAX = 2  # of the announced size, all parts together
KEPT_S = 24 * 3600.0  # then its record is deleted too

UploadState = Literal["pending", "completed", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadRecord:
    """An upload in parts. `size`: the announced total in bytes; `file_kept_s`: of the resulting file."""

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


def begin(
    ledger: Ledger, tenant: str, *, filename: str, mime_type: str, purpose: str, size: int, file_kept_s: float
) -> UploadRecord:
    now = ledger.clock.now()
    record = UploadRecord(
        upload_id=f"upload_{ledger.new_id()}",
        tenant=tenant,
        filename=filename,
        mime_type=mime_type,
        purpose=purpose,
        size=size,
        created_at=now,
        expires_at=now + UPLOAD_S,
        file_kept_s=file_kept_s,
        write_id=ledger.new_id(),
    )
    remove_after(ledger, upload_prefix(tenant, record.upload_id), KEPT_S)
    swap(ledger, upload_key(tenant, record.upload_id), record, None)
    return record


def read_upload(ledger: Ledger, tenant: str, upload_id: str) -> UploadRecord | None:
    found = _find(ledger, tenant, upload_id)
    return None if found is None else found.record


def is_expired(ledger: Ledger, upload: UploadRecord) -> bool:
    """By the store's clock. The local one, which may be ahead, says only when to look."""
    if upload.state != "pending" or ledger.clock.now() < upload.expires_at:
        return False
    found = _find(ledger, upload.tenant, upload.upload_id)
    return found is None or found.age_s >= upload.expires_at - upload.created_at


def add_part(ledger: Ledger, upload: UploadRecord, chunks: Iterable[bytes], *, bytes_max: int) -> str:
    """Store one part; returns its id. Raises: InvalidFile if the upload accepts no more parts; TooLarge."""
    _check_pending(ledger, upload)
    _check_room(ledger, upload)
    part_id = f"part_{ledger.new_id()}"
    size = 0
    key = upload_part_key(upload.tenant, upload.upload_id, part_id)
    with ledger.store.writer(key, is_new=True) as writer:
        for chunk in chunks:
            size += len(chunk)
            if size > bytes_max:
                raise TooLarge(f"data: is larger than {bytes_max:,} bytes; send it in more parts")
            if size > upload.size:
                raise InvalidFile(f"data: is larger than the whole upload, which announced {upload.size:,} bytes")
            writer.write(chunk)
        writer.commit()
    return part_id


def complete(ledger: Ledger, upload: UploadRecord, part_ids: Sequence[str], *, md5: str | None) -> UploadRecord:
    """Turn the parts, in this order, into a file. The same call again, even concurrently, finds the same file.

    Raises: InvalidFile if the parts are not what was announced, or the upload has ended.
    """
    found = _find(ledger, upload.tenant, upload.upload_id)
    if found is None:
        raise InvalidFile(f"the upload {upload.upload_id} no longer exists; start a new one")
    if found.record.state == "completed" and found.record.part_ids == tuple(part_ids):
        return _published(ledger, found.record)
    _check_pending(ledger, found.record)
    try:
        file = _join(ledger, upload, part_ids, md5=md5)
    except (InvalidFile, ObjectMissing, ObjectChanged):
        now = _find(ledger, upload.tenant, upload.upload_id)
        if now is None or now.etag == found.etag:
            raise
        return complete(ledger, upload, part_ids, md5=md5)  # it was decided meanwhile, and then its parts were removed
    done = _decide(ledger, found, state="completed", part_ids=tuple(part_ids), file=file)
    if done is None:
        ledger.store.delete(file.key)
        return complete(ledger, upload, part_ids, md5=md5)
    _published(ledger, done)
    _remove_parts(ledger, upload)
    return done


def cancel(ledger: Ledger, upload: UploadRecord) -> UploadRecord:
    """Idempotent. Raises: InvalidFile if it is completed."""
    found = _find(ledger, upload.tenant, upload.upload_id)
    if found is None or found.record.state == "cancelled":
        return upload if found is None else found.record
    _check_pending(ledger, found.record)
    done = _decide(ledger, found, state="cancelled")
    if done is None:
        return cancel(ledger, upload)
    _remove_parts(ledger, upload)
    return done


def _decide(ledger: Ledger, found: Stored[UploadRecord], **what: Any) -> UploadRecord | None:
    """None: it was decided otherwise meanwhile."""
    wanted = replace(found.record, write_id=ledger.new_id(), **what)
    written = swap(ledger, upload_key(wanted.tenant, wanted.upload_id), wanted, found)
    return None if isinstance(written, Lost) else wanted


def _find(ledger: Ledger, tenant: str, upload_id: str) -> Stored[UploadRecord] | None:
    if not is_upload_id(upload_id):
        return None
    return load(ledger, upload_key(tenant, upload_id), UploadRecord)


def _check_pending(ledger: Ledger, upload: UploadRecord) -> None:
    state = "expired" if is_expired(ledger, upload) else upload.state
    if state != "pending":
        raise InvalidFile(f"the upload {upload.upload_id} is {state}; start a new one")


def _check_room(ledger: Ledger, upload: UploadRecord) -> None:
    """A part may be sent again, which makes another part; the stored size is limited all the same."""
    stored = sum(_list_parts(ledger, upload).values())
    if stored > STORED_SHARE_MAX * upload.size:
        raise InvalidFile(f"the upload announced {upload.size:,} bytes, but received {stored:,}; start a new one")


def _list_parts(ledger: Ledger, upload: UploadRecord) -> dict[str, int]:
    """The key and the size of each stored part."""
    prefix = f"{upload_prefix(upload.tenant, upload.upload_id)}/part_"
    return {entry.key: entry.size for entry in ledger.store.list(prefix)}


def _join(ledger: Ledger, upload: UploadRecord, part_ids: Sequence[str], *, md5: str | None) -> FileRecord:
    parts = []
    size = 0
    if len(set(part_ids)) != len(part_ids):
        raise InvalidFile("part_ids: a part is named twice; name each part once, in order")
    for place, part_id in enumerate(part_ids):
        key = upload_part_key(upload.tenant, upload.upload_id, part_id)
        entry = ledger.store.head(key) if is_part_id(part_id) else None
        if entry is None:
            raise InvalidFile(f"part_ids[{place}]: {part_id[:80]!r} is not a part of this upload")
        parts.append(key)
        size += entry.size
    if size != upload.size:
        raise InvalidFile(f"part_ids: these parts have {size:,} bytes, but the upload announced {upload.size:,}")
    digest = hashlib.md5(usedforsecurity=False)
    file = store_file(
        ledger,
        upload.tenant,
        _hashed(ledger, parts, digest),
        filename=upload.filename,
        purpose=upload.purpose,
        kept_s=upload.file_kept_s,
        bytes_max=upload.size,
        is_published=False,
    )
    if md5 is not None and md5.lower() != digest.hexdigest():
        ledger.store.delete(file.key)
        raise InvalidFile(f"md5: these parts have {digest.hexdigest()}; a part is damaged, or the order is wrong")
    return file


def _hashed(ledger: Ledger, parts: Iterable[str], digest: "hashlib._Hash") -> Iterator[bytes]:
    for key in parts:
        for chunk in ledger.store.stream(key):
            digest.update(chunk)
            yield chunk


def _published(ledger: Ledger, upload: UploadRecord) -> UploadRecord:
    """The process that completed it may have died before it wrote the file's document. A deleted file stays deleted."""
    published = upload_published_key(upload.tenant, upload.upload_id)
    if upload.file is not None and ledger.store.head(published) is None:
        publish(ledger, upload.file)
        ledger.store.put(published, b"")
    return upload


def _remove_parts(ledger: Ledger, upload: UploadRecord) -> None:
    """Best effort: expiry removes what is left."""
    with suppress(StoreError):
        ledger.store.delete_many(list(_list_parts(ledger, upload)))
