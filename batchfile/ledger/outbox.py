"""What came of a dropped file: beside its path under `outbox/`, its full name kept. Of its newest version only.

Results and errors are a pure function of the ended batch, so that writing them twice gives the same bytes.
"""

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, BinaryIO, cast

import structlog

from batchfile import layout
from batchfile.errors import (
    BatchfileError,
    LeaseLost,
    ObjectChanged,
    ObjectMissing,
    PreconditionFailed,
    StoreError,
    StoreUnavailable,
)
from batchfile.ledger import outbox_documents as documents
from batchfile.ledger.base import Ledger
from batchfile.ledger.cas import load
from batchfile.ledger.presence import read_presence
from batchfile.ledger.turn import Turn
from batchfile.lines.frame import iter_lines
from batchfile.lines.render import openai_file
from batchfile.lines.result import RESULT_BYTES_MAX
from batchfile.records import BatchRecord, BatchState, DroppedFile, FileRef, LineError, Plan, ShardRecord
from batchfile.store.base import Writer
from batchfile.words import Counts, Usage

log = structlog.get_logger()

STATUS_S = 15.0  # between two writes of one file's progress, by whoever; a new state is told at once

RESULTS = "results.jsonl"
RESULTS_PARQUET = "results.parquet"
ERRORS = "errors.jsonl"
STATUS = "status.json"
RECEIPT = "receipt.json"
REJECTED = "rejected.json"

_STATES: tuple[BatchState, ...] = ("planning", "open", "ending", "ended")


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
    known = None if found is None else documents.read_status(found.data)
    if found is not None and known is not None and known.batch_id == batch.batch_id:
        ours = (_STATES.index(batch.state), counts.finished)
        theirs = (_STATES.index(known.state), known.counts.finished)
        if ours <= theirs or (ours[0] == theirs[0] and found.age_s < STATUS_S):
            return
    data = documents.encode(documents.status_of(batch, dropped, counts, usage, ledger.clock.now()))
    with suppress(PreconditionFailed):  # someone else has just told
        ledger.store.put(key, data, absent=found is None, match=None if found is None else found.etag)


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
    rejected = documents.Rejected(
        batch_id=None,
        input=documents.Input(path=key, etag=etag),
        message=message,
        errors=(LineError(code="not_accepted", message=message),),
    )
    place, data = layout.outbox_key(key, REJECTED), documents.encode(rejected)
    found = ledger.store.get(place)
    if found is None or found.data != data:
        ledger.store.put(place, data)
        log.warning("inbox.rejected", key=key, error=message)


def accept(ledger: Ledger, key: str) -> None:
    """The file `key` has become a batch: what was said against it before holds no more. Raises: StoreUnavailable."""
    ledger.store.delete(layout.outbox_key(key, REJECTED))


def _write(ledger: Ledger, batch: BatchRecord, dropped: DroppedFile, beat: Callable[[], None]) -> bool:
    """False: another version came meanwhile."""
    written = _write_files(ledger, batch, dropped, beat)
    if written is None:
        return False
    is_rejected = batch.reason == "failed" and written.results is None
    is_there = {
        RESULTS: written.results is not None,
        RESULTS_PARQUET: written.results_parquet is not None,
        ERRORS: written.errors is not None,
        REJECTED: is_rejected,
        RECEIPT: not is_rejected,
    }
    for kind, stays in is_there.items():
        if not stays:  # of an earlier version
            ledger.store.delete(layout.outbox_key(dropped.key, kind))
    report(ledger, batch, batch.counts, batch.usage)
    if is_rejected:
        last = documents.Rejected(
            batch_id=batch.batch_id,
            input=documents.input_of(batch, dropped),
            message=batch.detail or "the file can not be read",
            errors=dropped.errors,
        )
        ledger.store.put(layout.outbox_key(dropped.key, REJECTED), documents.encode(last))
        return True
    moves = dropped.move_done and batch.reason == "completed"
    moved_to = _move(ledger, dropped, beat) if moves else None
    receipt = documents.receipt_of(batch, dropped, _pools(ledger, batch), written, moved_to)
    ledger.store.put(layout.outbox_key(dropped.key, RECEIPT), documents.encode(receipt))
    return True


def _write_files(
    ledger: Ledger, batch: BatchRecord, dropped: DroppedFile, beat: Callable[[], None]
) -> documents.Written | None:
    """None: another version came meanwhile."""
    results = parquet = errors = None
    if batch.results is not None:
        results = _copy(ledger, dropped, RESULTS, _in_dialect(ledger, batch), beat)
        if results is None:
            return None
        if dropped.wants_parquet:
            parquet = _write_parquet(ledger, dropped, batch.results, beat)
            if parquet is None:
                return None
    if batch.errors is not None and batch.errors.num_lines:
        errors = _copy(ledger, dropped, ERRORS, ledger.store.stream(batch.errors.key), beat)
        if errors is None:
            return None
    return documents.Written(results=results, results_parquet=parquet, errors=errors)


def _pools(ledger: Ledger, batch: BatchRecord) -> dict[str, documents.Pool]:
    """Who ran the batch; rejected lines are nobody's. What runs the engines is by their own account, of now."""
    found = None if not batch.plan_key else load(ledger, batch.plan_key, Plan)
    if found is None:
        return {}
    pools = {}
    for pool, members in found.record.pools.items():
        if pool != layout.REJECTED_POOL:
            told = {f"{one.engine} {one.engine_version}".strip() for one in read_presence(ledger, pool)}
            models = batch.routing.pools.get(pool) or (pool,)
            num_requests = sum(members.values())
            pools[pool] = documents.Pool(model=models[0], requests=num_requests, engines=tuple(sorted(told)))
    return pools


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
    with ledger.store.writer(key) as writer:
        sink = _Sink(writer)
        num_lines = 0
        for chunk in chunks:
            beat()
            sink.write(chunk)
            num_lines += chunk.count(b"\n")
        if not is_newest(ledger, dropped):
            return None
        writer.commit()
    return FileRef(key=key, size=sink.size, sha256=sink.digest.hexdigest(), num_lines=num_lines)


def _write_parquet(ledger: Ledger, dropped: DroppedFile, results: FileRef, beat: Callable[[], None]) -> FileRef | None:
    """As `_copy`; a row for each result."""
    from batchfile.lines.parquet import write_results

    def lines() -> Iterator[bytes]:
        for line in iter_lines(ledger.store.stream(results.key), line_bytes_max=RESULT_BYTES_MAX):
            beat()
            yield line.data or b""

    key = layout.outbox_key(dropped.key, RESULTS_PARQUET)
    with ledger.store.writer(key) as writer:
        sink = _Sink(writer)
        write_results(lines(), cast(BinaryIO, sink))
        if not is_newest(ledger, dropped):
            return None
        writer.commit()
    return FileRef(key=key, size=sink.size, sha256=sink.digest.hexdigest(), num_lines=results.num_lines)


def _move(ledger: Ledger, dropped: DroppedFile, beat: Callable[[], None]) -> str | None:
    """Copy the file out of the inbox, then remove it there; where it is now. One that was replaced meanwhile stays."""
    target = layout.done_key(dropped.key)
    try:
        with ledger.store.writer(target) as writer:
            for chunk in ledger.store.stream(dropped.key, match=dropped.etag):
                beat()
                writer.write(chunk)
            writer.commit()
        entry = ledger.store.head(dropped.key)
        if entry is None or entry.etag != dropped.etag:
            return None
        ledger.store.delete(dropped.key)
    except ObjectChanged:
        return None
    except ObjectMissing:  # whoever was cut off here had moved it, or its owner took it away
        return None if ledger.store.head(target) is None else target
    except StoreUnavailable:
        raise
    except StoreError as error:  # not allowed, say
        log.error("inbox.not_moved", key=dropped.key, error=str(error))
        return None
    log.info("inbox.moved", key=dropped.key, to=target)
    return target


class _Sink(io.RawIOBase):
    """An object that is being written, as a file; counts and hashes what goes through."""

    def __init__(self, writer: Writer) -> None:
        self.size = 0
        self.digest = hashlib.sha256()
        self._writer = writer

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.size

    def write(self, data: Any) -> int:
        chunk = bytes(data)
        self._writer.write(chunk)
        self.digest.update(chunk)
        self.size += len(chunk)
        return len(chunk)
