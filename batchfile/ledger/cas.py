"""Compare-and-swap on records, the same for all stores.

A write whose answer was lost may have succeeded. So after anything but success the record is read back, and its
content decides. It knows no protocol: the caller says how to recognize its own records.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, Literal

from batchfile.errors import (
    BatchDamaged,
    PreconditionFailed,
    RecordDamaged,
    RecordNewer,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from batchfile.ledger.base import Ledger
from batchfile.ledger.records import BatchRecord, Record, ShardRecord, check_known, decode, encode
from batchfile.store.base import Object

ATTEMPTS_MAX = 5
PAUSE_S = 0.05  # doubled with each attempt, jittered
READS_MAX = 3  # reads of an unreadable record before it counts as damaged
READ_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class Stored(Generic[Record]):
    """A record and the etag with which it was read or written. `age_s` is by the store's clock.

    `newer`: why this process must not rewrite it; None if it may.
    """

    record: Record
    etag: str
    age_s: float = 0.0
    newer: RecordNewer | None = None


@dataclass(frozen=True, slots=True)
class Lost(Generic[Record]):
    """The write of another process stands; `found` is its record (None: the object is gone)."""

    found: Stored[Record] | None


Verdict = Literal["won", "again", "lost"]


def load(ledger: Ledger, key: str, kind: type[Record]) -> Stored[Record] | None:
    """Raises: RecordDamaged, RecordNewer, StoreError."""
    found = ledger.store.get(key)
    return None if found is None else parse(ledger, key, found, kind)


def parse(ledger: Ledger, key: str, found: Object, kind: type[Record]) -> Stored[Record] | None:
    """The record in `found`. An unreadable answer is read again: a store or a proxy may return garbage once.

    None if the object is gone by then. Raises: as `load`.
    """
    for num_reads in range(1, READS_MAX + 1):
        try:
            return _stored(found, decode(found.data, kind))
        except RecordNewer as error:
            raise RecordNewer(f"{_place(ledger, key)}: {error}") from error
        except BatchDamaged as error:
            damage = RecordDamaged(f"{_place(ledger, key)}: {error}", key=key, etag=found.etag)
        if num_reads < READS_MAX:
            ledger.clock.sleep(READ_PAUSE_S)
            again = ledger.store.get(key)
            if again is None:
                return None
            found = again
    raise damage


def must_know(ledger: Ledger, key: str, found: Stored[Record]) -> None:
    """Call this before `found` is rewritten or removed. Raises: RecordNewer."""
    if found.newer is not None:
        raise RecordNewer(f"{_place(ledger, key)}: {found.newer}") from found.newer


def _stored(found: Object, record: Record) -> Stored[Record]:
    newer = None
    try:
        check_known(found.data, record)
    except RecordNewer as error:
        newer = error
    return Stored(record, found.etag, found.age_s, newer)


def _place(ledger: Ledger, key: str) -> str:
    return f"{key} in {ledger.store.url}"


def swap(
    ledger: Ledger,
    key: str,
    record: Record,
    over: Stored[Record] | RecordDamaged | None,
    *,
    attempts_max: int = ATTEMPTS_MAX,
) -> Stored[Record] | Lost[Record]:
    """Write `record` over the version `over`, over exactly these damaged bytes, or as a new object (no `over`).

    Idempotent: the same call after a crash or a lost answer finds its own write. Raises: StoreUnavailable where
    the outcome cannot be learned now: the caller retries later with a higher seq and never guesses. Its kind StoreFull
    is raised at once, because only a person can help. RecordNewer where this process must not rewrite what is there.
    """
    if isinstance(over, Stored):
        must_know(ledger, key, over)
    etag = None if over is None else over.etag
    data = encode(record)
    refusal: StoreError | None = None
    for attempt in range(attempts_max):
        try:
            return Stored(record, ledger.store.put(key, data, absent=etag is None, match=etag))
        except StoreFull:
            raise
        except (PreconditionFailed, StoreUnavailable) as error:
            refusal = error  # rejected, or only the answer was lost: the read-back tells which
        # Read back, because neither answer proves anything: a write may be executed although its answer is lost, and
        # its repetition is then rejected because of the first. The id in the record tells whose write is there.
        try:
            found = load(ledger, key, type(record))
        except RecordDamaged as damage:
            if damage.etag != etag:
                raise
        else:
            if found is None:
                if etag is not None:
                    return Lost(None)
            else:
                verdict = judge(found.record, record)
                if verdict == "won":
                    return found
                if verdict == "lost" and found.etag != etag:
                    return Lost(found)
                etag = found.etag  # the version to replace, or our earlier write: nobody has won yet, try again
        ledger.clock.sleep(PAUSE_S * 2**attempt * (0.5 + ledger.rng.random()))
    raise StoreUnavailable(
        f"{key}: a conditional write failed {attempts_max} times and no other writer won: {refusal}"
    ) from refusal


def judge(found: Record, ours: Record) -> Verdict:
    """Who made the write `found`, seen from the writer of `ours`? Pure."""
    if isinstance(found, ShardRecord) and isinstance(ours, ShardRecord):
        if found.lease != ours.lease:
            return "lost"
        if found.state == "done":
            return "won"  # our earlier write whose answer was lost: it holds every line, and is never written again
        return "won" if found.seq == ours.seq else "again" if found.seq < ours.seq else "lost"
    if isinstance(found, BatchRecord) and isinstance(ours, BatchRecord):
        return "won" if found.write_id == ours.write_id else "lost"
    return "won" if found == ours else "lost"


def update_batch(
    ledger: Ledger, key: str, decide: Callable[[BatchRecord], BatchRecord | None]
) -> Stored[BatchRecord] | None:
    """Read, decide and write until the record is as wanted.

    `decide` gets the current record and returns the wanted one, or None if nothing is to change.
    Returns the record as it is then, or None if the batch does not exist.
    """
    while True:
        found = load(ledger, key, BatchRecord)
        if found is None:
            return None
        wanted = decide(found.record)
        if wanted is None:
            return found
        wanted = replace(wanted, seq=found.record.seq + 1, write_id=ledger.new_id())
        written = swap(ledger, key, wanted, found)
        if isinstance(written, Stored):
            return written
        ledger.clock.sleep(PAUSE_S * ledger.rng.random())
