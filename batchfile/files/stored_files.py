"""Files that a tenant stored: written once, read, listed, removed. Knows no HTTP and does not look into them.

A document names the bytes and is written last. Once it is gone, nobody finds the file; the bytes stay for as long as
a batch may run that was made of it.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import suppress

from batchfile.errors import RecordDamaged, StoreError, TooLarge
from batchfile.files.records import FileRecord
from batchfile.ledger import keys
from batchfile.ledger.base import Ledger
from batchfile.ledger.cas import load
from batchfile.ledger.expiry import remove_after
from batchfile.ledger.records import encode

MARGIN_S = 3600.0  # an expired batch reads its input once more


def store_file(
    ledger: Ledger,
    tenant: str,
    chunks: Iterable[bytes],
    *,
    filename: str,
    purpose: str,
    kept_s: float,
    bytes_max: int,
) -> FileRecord:
    """Store the bytes, then the document. Raises: TooLarge, of which nothing stays; StoreUnavailable."""
    record = write_data(ledger, tenant, chunks, filename=filename, purpose=purpose, kept_s=kept_s, bytes_max=bytes_max)
    publish(ledger, record)
    return record


def write_data(
    ledger: Ledger,
    tenant: str,
    chunks: Iterable[bytes],
    *,
    filename: str,
    purpose: str,
    kept_s: float,
    bytes_max: int,
) -> FileRecord:
    """Store the bytes of a file that does not exist before `publish`."""
    now = ledger.clock.now()
    file_id = keys.new_file_id(now, ledger.new_id())
    remove_after(ledger, keys.file_prefix(tenant, file_id), kept_s + _in_use_s(ledger))
    key = keys.file_data_key(tenant, file_id, ledger.new_id()[:12])
    digest = hashlib.sha256()
    size = 0
    with ledger.store.writer(key, is_new=True) as writer:
        for chunk in chunks:
            size += len(chunk)
            if size > bytes_max:
                raise TooLarge(f"file: is larger than {bytes_max:,} bytes; split it")
            digest.update(chunk)
            writer.write(chunk)
        writer.commit()
    return FileRecord(
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


def publish(ledger: Ledger, record: FileRecord) -> None:
    """From now on the file exists. Idempotent."""
    ledger.store.put(keys.file_key(record.tenant, record.file_id), encode(record))


def read_file(ledger: Ledger, tenant: str, file_id: str) -> FileRecord | None:
    """None where there is none, or none any more."""
    if not keys.is_file_id(file_id):
        return None
    found = load(ledger, keys.file_key(tenant, file_id), FileRecord)
    if found is None or ledger.clock.now() >= found.record.expires_at:
        return None
    return found.record


def list_file_ids(ledger: Ledger, tenant: str, *, after: str | None = None) -> Iterator[str]:
    """Newest first; `after` an id, whose file may be gone. Expired ones are among them."""
    prefix = keys.files_prefix(tenant)
    start = "" if after is None else keys.file_key(tenant, after)
    for entry in ledger.store.list(f"{prefix}file-", after=start):
        file_id = keys.file_id_of(entry.key)
        if file_id is not None and keys.is_file_id(file_id):
            yield file_id


def remove_file(ledger: Ledger, tenant: str, file_id: str) -> bool:
    """Make a file unreadable at once; its bytes go when no batch can need them. False: there is none.

    A file that can be read keeps its bytes, so that they are given up last, and where that fails go in their own time.
    One whose document is damaged is removed like any other. Raises: RecordNewer.
    """
    with suppress(RecordDamaged):
        if read_file(ledger, tenant, file_id) is None:
            return False
    ledger.store.delete(keys.file_key(tenant, file_id))
    with suppress(StoreError):
        remove_after(ledger, keys.file_prefix(tenant, file_id), _in_use_s(ledger))
    return True


def _in_use_s(ledger: Ledger) -> float:
    return ledger.limits.completion_window_s + MARGIN_S
