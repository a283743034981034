"""The one compare-and-swap over all stores.

A write whose answer was lost may have won, so after anything but success the record is read back and what is
inside decides. Knows no protocol: the caller says which records are its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, Literal

from batchfile.errors import BatchDamaged, PreconditionFailed, StoreError, StoreFull, StoreUnavailable
from batchfile.ledger.base import Ledger
from batchfile.records import BatchRecord, Record, ShardRecord, decode, encode

ATTEMPTS_MAX = 5
PAUSE_S = 0.05  # doubled with each attempt, jittered


@dataclass(frozen=True, slots=True)
class Stored(Generic[Record]):
    """A record and the etag that it had when it was read or written. `age_s`: by the store's own clock."""

    record: Record
    etag: str
    age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Lost(Generic[Record]):
    """Someone else's write stands; `found` is theirs (None: the object is gone)."""

    found: Stored[Record] | None


Verdict = Literal["won", "again", "lost"]


def load(ledger: Ledger, key: str, kind: type[Record]) -> Stored[Record] | None:
    found = ledger.store.get(key)
    if found is None:
        return None
    try:
        return Stored(decode(found.data, kind), found.etag, found.age_s)
    except BatchDamaged as error:
        raise BatchDamaged(f"{key} in {ledger.store.url}: {error}; remove the batch, or restore the object") from error


def swap(ledger: Ledger, key: str, record: Record, etag: str | None) -> Stored[Record] | Lost[Record]:
    """Write `record` over the version `etag`, or over nothing where `etag` is None.

    Idempotent: the same call after a crash or a lost answer finds its own write. Raises: StoreUnavailable where
    the outcome can not be learned now; the caller tries again later with a higher seq, never guesses. StoreFull, of it,
    at once: only a person can help.
    """
    data = encode(record)
    refusal: StoreError | None = None
    for attempt in range(ATTEMPTS_MAX):
        try:
            return Stored(record, ledger.store.put(key, data, absent=etag is None, match=etag))
        except StoreFull:
            raise
        except (PreconditionFailed, StoreUnavailable) as error:
            refusal = error  # or only the answer was lost: what is there now tells which
        found = load(ledger, key, type(record))
        if found is None:
            if etag is not None:
                return Lost(None)
        else:
            verdict = judge(found.record, record)
            if verdict == "won":
                return found
            if verdict == "lost" and found.etag != etag:
                return Lost(found)
            etag = found.etag
        ledger.clock.sleep(PAUSE_S * 2**attempt * (0.5 + ledger.rng.random()))
    raise StoreUnavailable(
        f"{key}: a conditional write failed {ATTEMPTS_MAX} times without another winner, at last: {refusal}"
    ) from refusal


def judge(found: Record, ours: Record) -> Verdict:
    """Whose write is `found`, seen from the writer of `ours`? Pure."""
    if isinstance(found, ShardRecord) and isinstance(ours, ShardRecord):
        if found.lease != ours.lease:
            return "lost"
        if found.state == "done":
            return "won"  # an earlier write whose answer was lost: it holds every line, and is never written again
        return "won" if found.seq == ours.seq else "again" if found.seq < ours.seq else "lost"
    if isinstance(found, BatchRecord) and isinstance(ours, BatchRecord):
        return "won" if found.write_id == ours.write_id else "lost"
    return "won" if found == ours else "lost"


def update_batch(
    ledger: Ledger, key: str, decide: Callable[[BatchRecord], BatchRecord | None]
) -> Stored[BatchRecord] | None:
    """Read, decide, write until the wanted fact is there.

    `decide` gets the record as it is and returns the one it should be, or None where nothing is to change.
    Returns the record as it stands, or None where there is no such batch.
    """
    while True:
        found = load(ledger, key, BatchRecord)
        if found is None:
            return None
        wanted = decide(found.record)
        if wanted is None:
            return found
        wanted = replace(wanted, seq=found.record.seq + 1, write_id=ledger.new_id())
        written = swap(ledger, key, wanted, found.etag)
        if isinstance(written, Stored):
            return written
        ledger.clock.sleep(PAUSE_S * ledger.rng.random())
