"""Finds the batch that a repeated create means: by the caller's key, or by the body where a client only retries.

A record is written before the commit, so a create that is repeated after a lost answer or a crash completes the same
batch. It knows no HTTP.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from batchfile.errors import BatchDamaged, KeyReused, RecordDamaged
from batchfile.ledger import keys
from batchfile.ledger.base import Ledger
from batchfile.ledger.cas import Lost, Stored, load, must_know, swap
from batchfile.ledger.records import VERSION, BatchRecord
from batchfile.ledger.retention import fence_abandoned
from batchfile.ledger.set_aside import do_each
from batchfile.store.base import Entry

RETRY_S = 15 * 60.0  # how long a retry without a key is recognized by its body


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencyRecord:
    """The batch of an idempotency key, a body or a local output; `digest` is of the request.

    `created_at`: the batch's, so that any process that completes the create writes the same index entry; 0 for a local
    output. `is_retry`: a body that a retry recorded, not its first attempt. `replaces`: for a local output without a
    digest yet, its previous batch, whose results the new one takes over.
    """

    batch_id: str
    digest: str
    created_at: float = 0.0
    is_retry: bool = False
    replaces: str = ""
    version: int = VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyedBatch:
    """The batch to create, or to answer with if it exists. `is_first`: nobody asked for it before.

    `is_shared`: any process that repeats the create finds it too, and may be creating it now.
    """

    batch_id: str
    created_at: float
    is_first: bool = True
    is_shared: bool = False


def get_or_create(ledger: Ledger, *, kind: str, tenant: str, value: str, digest: str, batch_id: str) -> KeyedBatch:
    """The batch of `value`: `batch_id`, unless an earlier create assigned another.

    A batch that was deleted, or was rejected or abandoned before its commit, does not count.
    Raises: KeyReused where the earlier create had another `digest`.
    """
    key = keys.idempotency_key(kind, f"{tenant}\n{value}")

    def is_it(found: Stored[IdempotencyRecord]) -> bool:
        if _is_gone(ledger, tenant, found):
            return False
        if found.record.digest != digest:
            raise KeyReused(
                f"Idempotency-Key: {value[:80]!r} was used for another request (batch {found.record.batch_id}); "
                "use a new key for a new request"
            )
        return True

    wanted = IdempotencyRecord(batch_id=batch_id, digest=digest, created_at=ledger.clock.now())
    return _write_or_get(ledger, key, wanted, is_it)


def get_or_create_retry(
    ledger: Ledger, *, tenant: str, digest: str, batch_id: str, is_retry: bool, arrived_at: float
) -> KeyedBatch:
    """The batch of a body without a key, which several attempts of one create give the same.

    A retry takes the batch that any attempt recorded recently. A first attempt is a new create, unless its own retry
    was faster and recorded a batch after the first attempt arrived. `arrived_at`: by the ledger's monotonic clock.
    """

    def is_it(found: Stored[IdempotencyRecord]) -> bool:
        waited_s = ledger.clock.monotonic() - arrived_at
        younger_than_s = RETRY_S if is_retry else waited_s if found.record.is_retry else 0.0
        return found.age_s < younger_than_s and not _is_gone(ledger, tenant, found)

    key = keys.idempotency_key("body", f"{tenant}\n{digest}")
    wanted = IdempotencyRecord(batch_id=batch_id, digest=digest, created_at=ledger.clock.now(), is_retry=is_retry)
    return _write_or_get(ledger, key, wanted, is_it, is_replaceable=True)


def known(ledger: Ledger, *, kind: str, tenant: str, value: str, digest: str) -> str | None:
    """The id that an earlier create gave `value` for the same digest, or None. Changes nothing."""
    found = load(ledger, keys.idempotency_key(kind, f"{tenant}\n{value}"), IdempotencyRecord)
    if found is None or found.record.digest != digest or (kind == "body" and found.age_s >= RETRY_S):
        return None
    return found.record.batch_id


def sweep_idempotency(ledger: Ledger) -> int:
    """Remove the records whose batch is gone; returns how many. Call it about once an hour.

    A batch is gone when its tombstone is. Records of the last day or two are kept: their batches exist, or may be about
    to be created. The store's clock decides; the local one, which may be wrong, only saves requests.
    """
    kept_s = ledger.limits.tombstone_s + min(ledger.limits.retention_s, ledger.limits.tombstone_s)
    old = ledger.clock.now() - kept_s

    def remove(entry: Entry) -> bool:
        with suppress(BatchDamaged):  # the next create with this key reports it
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
    """`is_it`: does the record that was found stand for the same create? `is_replaceable`: a damaged record may be
    replaced. Not for a caller's key, where the caller is told, because only the record knows the key's batch.
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
    """Was the create rejected or abandoned, or the batch deleted? An abandoned one is fenced: it may only be slow."""
    batch_id = found.record.batch_id
    batch = load(ledger, keys.batch_key(batch_id), BatchRecord)
    if batch is not None:
        return batch.record.state == "deleted"
    if found.age_s < ledger.limits.abandoned_s:
        return False
    entry = ledger.store.get(keys.index_key(tenant, found.record.created_at, batch_id))
    is_alive = entry is not None and entry.age_s < ledger.limits.abandoned_s
    return not is_alive and fence_abandoned(ledger, batch_id)
