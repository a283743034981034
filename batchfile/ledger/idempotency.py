"""Which batch a repeated create means: by the key that its caller gave, or by its body where a client only retries.

A record is written before the commit, so whoever repeats a create after a lost answer or a crash completes the same
batch. Knows no HTTP.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from batchfile.errors import BatchDamaged, KeyReused, RecordDamaged
from batchfile.ledger import keys
from batchfile.ledger.base import Ledger
from batchfile.ledger.cas import Lost, Stored, load, must_know, swap
from batchfile.ledger.records import BatchRecord, IdempotencyRecord
from batchfile.ledger.retention import fence_abandoned
from batchfile.ledger.set_aside import do_each
from batchfile.store.base import Entry

RETRY_S = 15 * 60.0  # for so long a retry without a key is recognised by its body


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyedBatch:
    """The batch to create, or to answer with where it exists. `is_first`: nobody asked for it before.

    `is_shared`: whoever repeats the create finds it too, and may be making it now.
    """

    batch_id: str
    created_at: float
    is_first: bool = True
    is_shared: bool = False


def get_or_create(ledger: Ledger, *, kind: str, tenant: str, value: str, digest: str, batch_id: str) -> KeyedBatch:
    """The batch that `value` stands for: `batch_id`, unless an earlier create with it gave another.

    A batch that was deleted, or refused or abandoned before its commit, stands for nothing.
    Raises: KeyReused where the earlier `digest` was another.
    """
    key = keys.idempotency_key(kind, f"{tenant}\n{value}")

    def is_it(found: Stored[IdempotencyRecord]) -> bool:
        if _is_gone(ledger, tenant, found):
            return False
        if found.record.digest != digest:
            raise KeyReused(
                f"Idempotency-Key: {value[:80]!r} was used for another request (batch {found.record.batch_id}); "
                "send a new key with a new request"
            )
        return True

    wanted = IdempotencyRecord(batch_id=batch_id, digest=digest, created_at=ledger.clock.now())
    return _write_or_get(ledger, key, wanted, is_it)


def get_or_create_retry(
    ledger: Ledger, *, tenant: str, digest: str, batch_id: str, is_retry: bool, arrived_at: float
) -> KeyedBatch:
    """The batch of a body without a key, which several attempts of one create give the same.

    A retry adopts what any attempt wrote down lately. A first attempt is a create of its own, unless its own retry was
    faster: what a retry wrote down since the first attempt arrived. `arrived_at`: by the ledger's monotonic clock.
    """

    def is_it(found: Stored[IdempotencyRecord]) -> bool:
        waited_s = ledger.clock.monotonic() - arrived_at
        younger_than_s = RETRY_S if is_retry else waited_s if found.record.is_retry else 0.0
        return found.age_s < younger_than_s and not _is_gone(ledger, tenant, found)

    key = keys.idempotency_key("body", f"{tenant}\n{digest}")
    wanted = IdempotencyRecord(batch_id=batch_id, digest=digest, created_at=ledger.clock.now(), is_retry=is_retry)
    return _write_or_get(ledger, key, wanted, is_it, is_replaceable=True)


def known(ledger: Ledger, *, kind: str, tenant: str, value: str, digest: str) -> str | None:
    """The id that an earlier create gave `value`, for the same digest; None where there is none. Changes nothing."""
    found = load(ledger, keys.idempotency_key(kind, f"{tenant}\n{value}"), IdempotencyRecord)
    if found is None or found.record.digest != digest or (kind == "body" and found.age_s >= RETRY_S):
        return None
    return found.record.batch_id


def sweep_idempotency(ledger: Ledger) -> int:
    """Remove the records whose batch is gone; how many. For once an hour or so.

    A batch is gone when its tombstone is. Records of a day or two stay: their batches live, or may be about to be
    created. The store's clock decides; ours, which may be wrong, only spares looks.
    """
    kept_s = ledger.limits.tombstone_s + min(ledger.limits.retention_s, ledger.limits.tombstone_s)
    old = ledger.clock.now() - kept_s

    def remove(entry: Entry) -> bool:
        with suppress(BatchDamaged):  # whoever asks for it hears of it
            found = load(ledger, entry.key, IdempotencyRecord)
            if found is None or found.age_s < kept_s:
                return False
            if load(ledger, keys.batch_key(found.record.batch_id), BatchRecord) is None:
                must_know(ledger, entry.key, found)
                ledger.store.delete(entry.key)
                return True
        return False

    entries = [entry for entry in ledger.store.list(keys.IDEMPOTENCY_PREFIX) if entry.modified_at <= old]
    return do_each(entries, remove, "idempotency.failed")


def _write_or_get(
    ledger: Ledger,
    key: str,
    wanted: IdempotencyRecord,
    is_it: Callable[[Stored[IdempotencyRecord]], bool],
    *,
    is_replaceable: bool = False,
) -> KeyedBatch:
    """`is_it`: does what was found stand for the same create? `is_replaceable`: a damaged record is, which a caller who
    gave a key hears of: it says which batch that key is.
    """
    found: Stored[IdempotencyRecord] | RecordDamaged | None = None
    while True:
        try:
            written = swap(ledger, key, wanted, found)
        except RecordDamaged as damage:
            if not is_replaceable:
                raise
            found = damage
            continue
        if not isinstance(written, Lost):
            return _keyed(wanted, is_first=True)
        found = written.found
        if found is not None and is_it(found):
            return _keyed(found.record, is_first=False)


def _keyed(record: IdempotencyRecord, *, is_first: bool) -> KeyedBatch:
    return KeyedBatch(batch_id=record.batch_id, created_at=record.created_at, is_first=is_first, is_shared=True)


def _is_gone(ledger: Ledger, tenant: str, found: Stored[IdempotencyRecord]) -> bool:
    """Was its create refused or abandoned, or its batch deleted? An abandoned one is fenced: it may only be slow."""
    batch_id = found.record.batch_id
    batch = load(ledger, keys.batch_key(batch_id), BatchRecord)
    if batch is not None:
        return batch.record.state == "deleted"
    if found.age_s < ledger.limits.abandoned_s:
        return False
    marker = ledger.store.get(keys.index_key(tenant, found.record.created_at, batch_id))
    is_alive = marker is not None and marker.age_s < ledger.limits.abandoned_s
    return not is_alive and fence_abandoned(ledger, batch_id)
