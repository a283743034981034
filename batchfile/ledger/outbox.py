"""What came of a dropped file: beside its path under `outbox/`, its full name kept. Of its newest version only.

Everything but the progress is a pure function of the ended batch, so that writing it twice gives the same bytes.
"""

import hashlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

import msgspec
import structlog

from batchfile import layout
from batchfile.errors import BatchfileError, LeaseLost, PreconditionFailed
from batchfile.ledger.base import Ledger
from batchfile.ledger.cas import load
from batchfile.ledger.turn import Turn
from batchfile.lines.render import openai_file
from batchfile.records import BatchRecord, BatchState, DroppedFile, FileRef, LineError, ShardRecord
from batchfile.words import Counts, Usage

log = structlog.get_logger()

STATUS_S = 15.0  # between two writes of one file's progress, by whoever

RESULTS = "results.jsonl"
ERRORS = "errors.jsonl"
STATUS = "status.json"
RECEIPT = "receipt.json"
REJECTED = "rejected.json"

_STATES: tuple[BatchState, ...] = ("planning", "open", "ending", "ended")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Input:
    """`etag`: the version. `sha256`: of the requests as they ran; None where they were never read to their end."""

    path: str
    etag: str
    sha256: str | None = None
    requests: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    path: str
    bytes: int
    sha256: str
    lines: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Status:
    """How far the batch is. Times: epoch seconds."""

    batch_id: str
    state: BatchState
    reason: str | None
    input: _Input
    total: int
    counts: Counts
    usage: Usage
    created_at: float
    expires_at: float
    updated_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Receipt:
    """Written last. `pools`: pool -> its model. `seconds`: from the claim of the file to the end of its batch."""

    batch_id: str
    reason: str
    detail: str | None
    stage: str | None
    pools: dict[str, str]
    input: _Input
    results: _File | None
    errors: _File | None
    counts: Counts
    usage: Usage
    created_at: float
    planned_at: float | None
    ended_at: float | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rejected:
    """Why a file became nothing. `batch_id` None: it was not even looked into."""

    batch_id: str | None
    input: _Input
    message: str
    errors: tuple[LineError, ...]


def is_replaced(ledger: Ledger, batch: BatchRecord) -> bool:
    """Can the rest of this batch no longer be what its file asks for?"""
    if batch.dropped is None:
        return False
    entry = ledger.store.head(batch.dropped.key)
    if entry is None:
        return batch.input.key == batch.dropped.key
    return entry.etag != batch.dropped.etag


def is_newest(ledger: Ledger, dropped: DroppedFile) -> bool:
    """Is this version the one in the inbox, or was it the last one there?"""
    entry = ledger.store.head(dropped.key)
    if entry is None:
        return True
    return (entry.etag, int(entry.modified_at)) == (dropped.etag, int(dropped.modified_at))


def report(ledger: Ledger, batch: BatchRecord, counts: Counts, usage: Usage) -> None:
    """Write how far a batch is, where that is news; counts never go back. Raises: StoreUnavailable."""
    dropped = batch.dropped
    if dropped is None or not is_newest(ledger, dropped):
        return
    key = layout.outbox_key(dropped.key, STATUS)
    found = ledger.store.get(key)
    known = None if found is None else _read_status(found.data)
    if found is not None and known is not None and known.batch_id == batch.batch_id:
        ours = (_STATES.index(batch.state), counts.finished)
        theirs = (_STATES.index(known.state), known.counts.finished)
        if ours <= theirs or (ours[0] == theirs[0] and found.age_s < STATUS_S):
            return
    status = _Status(
        batch_id=batch.batch_id,
        state=batch.state,
        reason=batch.reason,
        input=_input_of(batch, dropped),
        total=batch.total,
        counts=counts,
        usage=usage,
        created_at=batch.created_at,
        expires_at=batch.expires_at,
        updated_at=batch.ended_at or ledger.clock.now(),
    )
    with suppress(PreconditionFailed):  # someone else has just told
        ledger.store.put(key, _encode(status), absent=found is None, match=None if found is None else found.etag)


def publish(ledger: Ledger, batch: BatchRecord, *, runner: str) -> bool:
    """Write everything of an ended batch, unless that was done before. False: someone else is at it.

    What a reader takes away afterwards does not come back. Raises: StoreError; cut off, it is done again.
    """
    dropped = batch.dropped
    if dropped is None or batch.state != "ended":
        return True
    key = layout.outbox_turn_key(batch.batch_id)
    found = load(ledger, key, ShardRecord)
    if found is not None and found.record.state == "done":
        return True
    turn = Turn.take(ledger, key, layout.OUTBOX_POOL, runner)
    if turn is None:
        return False
    try:
        is_written = is_newest(ledger, dropped) and _write(ledger, batch, dropped, turn.beat)
        turn.finish()
    except LeaseLost:
        return False
    except BatchfileError:
        turn.give_back()
        raise
    if is_written:
        log.info("outbox.written", batch_id=batch.batch_id, key=dropped.key)
    return True


def refuse(ledger: Ledger, key: str, etag: str, message: str) -> None:
    """Say why the file `key` is not looked into. The same again writes nothing."""
    rejected = _Rejected(
        batch_id=None,
        input=_Input(path=key, etag=etag),
        message=message,
        errors=(LineError(code="not_accepted", message=message),),
    )
    place, data = layout.outbox_key(key, REJECTED), _encode(rejected)
    found = ledger.store.get(place)
    if found is None or found.data != data:
        ledger.store.put(place, data)
        log.warning("inbox.rejected", key=key, error=message)


def _write(ledger: Ledger, batch: BatchRecord, dropped: DroppedFile, beat: Callable[[], None]) -> bool:
    """False: another version came meanwhile."""
    results = errors = None
    if batch.results is not None:
        results = _copy(ledger, dropped, RESULTS, _in_dialect(ledger, batch), beat)
        if results is None:
            return False
    if batch.errors is not None and batch.errors.num_lines:
        errors = _copy(ledger, dropped, ERRORS, ledger.store.stream(batch.errors.key), beat)
        if errors is None:
            return False
    is_rejected = batch.reason == "failed" and results is None
    written = {RESULTS: results, ERRORS: errors, REJECTED: is_rejected or None, RECEIPT: not is_rejected or None}
    for kind, made in written.items():
        if made is None:  # of an earlier version
            ledger.store.delete(layout.outbox_key(dropped.key, kind))
    report(ledger, batch, batch.counts, batch.usage)
    if is_rejected:
        last = _Rejected(
            batch_id=batch.batch_id,
            input=_input_of(batch, dropped),
            message=batch.detail or "the file can not be read",
            errors=dropped.errors,
        )
        ledger.store.put(layout.outbox_key(dropped.key, REJECTED), _encode(last))
    else:
        ledger.store.put(layout.outbox_key(dropped.key, RECEIPT), _encode(_receipt(batch, dropped, results, errors)))
    return True


def _receipt(batch: BatchRecord, dropped: DroppedFile, results: FileRef | None, errors: FileRef | None) -> _Receipt:
    return _Receipt(
        batch_id=batch.batch_id,
        reason=batch.reason or "completed",
        detail=batch.detail,
        stage=batch.stage,
        pools={pool: models[0] for pool, models in batch.routing.pools.items() if models},
        input=_input_of(batch, dropped),
        results=_file(results),
        errors=_file(errors),
        counts=batch.counts,
        usage=batch.usage,
        created_at=batch.created_at,
        planned_at=batch.planned_at,
        ended_at=batch.ended_at,
        seconds=round((batch.ended_at or batch.created_at) - batch.created_at, 3),
    )


def _in_dialect(ledger: Ledger, batch: BatchRecord) -> Iterable[bytes]:
    """The results as the input's own dialect has them."""
    assert batch.results is not None
    chunks = ledger.store.stream(batch.results.key)
    if batch.input.dialect == "native":
        return chunks
    return openai_file(chunks, batch_id=batch.batch_id, created=int(batch.created_at), is_output=None)


def _copy(
    ledger: Ledger, dropped: DroppedFile, kind: str, chunks: Iterable[bytes], beat: Callable[[], None]
) -> FileRef | None:
    """None, and nothing written, where another version came meanwhile."""
    key = layout.outbox_key(dropped.key, kind)
    digest, size, num_lines = hashlib.sha256(), 0, 0
    with ledger.store.writer(key) as writer:
        for chunk in chunks:
            beat()
            writer.write(chunk)
            digest.update(chunk)
            size += len(chunk)
            num_lines += chunk.count(b"\n")
        if not is_newest(ledger, dropped):
            return None
        writer.commit()
    return FileRef(key=key, size=size, sha256=digest.hexdigest(), num_lines=num_lines)


def _input_of(batch: BatchRecord, dropped: DroppedFile) -> _Input:
    is_planned = bool(batch.plan_key)
    return _Input(
        path=dropped.key,
        etag=dropped.etag,
        sha256=batch.input.sha256 if is_planned else None,
        requests=batch.total if is_planned else None,
    )


def _file(ref: FileRef | None) -> _File | None:
    return None if ref is None else _File(path=ref.key, bytes=ref.size, sha256=ref.sha256, lines=ref.num_lines)


def _encode(document: _Status | _Receipt | _Rejected) -> bytes:
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def _read_status(data: bytes) -> _Status | None:
    """None where it is none of ours."""
    try:
        return msgspec.json.decode(data, type=_Status)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
