"""An input that is not as it was pinned any more, although the bytes that were planned are still there.

A file of the user's grows, is touched, or gets other permissions. The digest of the plan decides: nothing else proves
that the bytes are those. A file that grew is copied as far as it was planned, since it may go on growing.
"""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import structlog

from batchfile.errors import ObjectChanged, ObjectMissing, StoreError
from batchfile.ledger import keys
from batchfile.ledger.base import Ledger
from batchfile.ledger.cas import load, update_batch
from batchfile.ledger.records import BatchRecord, InputRef
from batchfile.store.base import Entry

log = structlog.get_logger()


def repin(ledger: Ledger, batch: BatchRecord, beat: Callable[[], None] = lambda: None) -> BatchRecord | None:
    """The batch with an input that can be read; None where the bytes that were planned are gone.

    Reads the whole input; calls `beat` every MiB. Raises: StoreError, BatchDamaged.
    """
    pinned = batch.input
    now = load(ledger, keys.batch_key(batch.batch_id), BatchRecord)
    if now is None or now.record.state not in {"open", "ending"}:
        return None
    if now.record.input != pinned:
        return now.record  # another process has done it
    entry = ledger.store.head(pinned.key)
    if batch.origin is not None or entry is None or entry.size < pinned.size:
        return None
    if entry.size == pinned.size:
        fresh = _in_place(ledger, pinned, entry, beat)
    else:
        fresh = _copied(ledger, batch.batch_id, pinned, beat)
    return None if fresh is None else _commit(ledger, batch, fresh)


def _in_place(ledger: Ledger, pinned: InputRef, entry: Entry, beat: Callable[[], None]) -> InputRef | None:
    with suppress(ObjectChanged, ObjectMissing):
        digest = hashlib.sha256()
        for chunk in ledger.store.stream(pinned.key, match=entry.etag):
            beat()
            digest.update(chunk)
        if digest.hexdigest() == pinned.sha256:
            return replace(pinned, etag=entry.etag)
    return None


def _copied(ledger: Ledger, batch_id: str, pinned: InputRef, beat: Callable[[], None]) -> InputRef | None:
    key = keys.input_key(batch_id, ledger.new_id()[:12])
    with suppress(ObjectChanged, ObjectMissing), ledger.store.writer(key, is_new=True) as writer:
        digest = hashlib.sha256()
        for chunk in ledger.store.stream(pinned.key, 0, pinned.size):
            beat()
            digest.update(chunk)
            writer.write(chunk)
        if digest.hexdigest() == pinned.sha256:
            return replace(pinned, key=key, etag=writer.commit())
    return None


def _commit(ledger: Ledger, batch: BatchRecord, fresh: InputRef) -> BatchRecord | None:
    def decide(record: BatchRecord) -> BatchRecord | None:
        is_ours = record.state in {"open", "ending"} and record.input == batch.input
        return replace(record, input=fresh) if is_ours else None

    found = update_batch(ledger, keys.batch_key(batch.batch_id), decide)
    record = None if found is None else found.record
    is_used = record is not None and record.input == fresh
    if fresh.key != batch.input.key and not is_used:
        with suppress(StoreError):
            ledger.store.delete(fresh.key)
    if record is None or record.state not in {"open", "ending"}:
        return None
    log.info("input.repinned", batch_id=batch.batch_id, key=record.input.key)
    return record
