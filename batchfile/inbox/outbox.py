"""Publishes what results from a dropped file: at its path under `outbox/`, with its full name, for its newest version.

Results and errors are a pure function of the ended batch, so writing them twice gives the same bytes. The last
document, a receipt or a rejection, replaces only what was there when this process got its task, so that a process that
slept cannot overwrite a newer version's. Removals and large files have no condition; right before each, the process
checks that it still holds the outbox.
"""

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, BinaryIO, cast

import structlog

from batchfile.errors import (
    BatchfileError,
    LeaseLost,
    ObjectChanged,
    ObjectMissing,
    PreconditionFailed,
    RecordDamaged,
    StoreError,
    StoreUnavailable,
)
from batchfile.inbox import documents
from batchfile.inbox.documents import ERRORS, KINDS, REASONS, RECEIPT, REJECTED, RESULTS, RESULTS_PARQUET, STATUS
from batchfile.inbox.keys import OUTBOX_POOL, done_key, outbox_key, outbox_task_key
from batchfile.inbox.records import ClaimRecord, DroppedFile, dropped_file
from batchfile.ledger import ending, keys, shards
from batchfile.ledger.base import Ledger
from batchfile.ledger.cas import load
from batchfile.ledger.heartbeats import read_heartbeats
from batchfile.ledger.records import BatchRecord, BatchState, FileRef, HeartbeatRecord, LineError, Plan, ShardRecord
from batchfile.lines.formats.openai_results import openai_file
from batchfile.lines.framing import iter_lines
from batchfile.lines.result import RESULT_BYTES_MAX
from batchfile.store.base import Entry, Object, Writer
from batchfile.types import Counts, Usage

log = structlog.get_logger()

STATUS_S = 15.0  # between two writes of one file's progress, by any process; a new state is written at once

_STATES: tuple[BatchState, ...] = ("planning", "open", "ending", "ended")


def is_there(ledger: Ledger, version: DroppedFile | ClaimRecord) -> bool:
    """Is this version the one in the inbox?"""
    return _is_version(ledger.store.head(version.key), version)


def _is_version(entry: Entry | None, version: DroppedFile | ClaimRecord) -> bool:
    """Compares like claims: the same bytes, dropped again, may have the same etag."""
    return entry is not None and (entry.etag, int(entry.modified_at)) == (version.etag, int(version.modified_at))


def is_replaced(ledger: Ledger, batch: BatchRecord) -> bool:
    """Is this batch outdated by a newer version of its file?"""
    dropped = dropped_file(batch)
    if dropped is None:
        return False
    entry = ledger.store.head(dropped.key)
    if entry is None:
        return batch.input.key == dropped.key
    return not _is_version(entry, dropped)


def is_newest(ledger: Ledger, dropped: DroppedFile) -> bool:
    """Is this version the newest? If the inbox has none, the outbox tells whether there was a later one.

    Later by the store's clock: those of the processes that claimed the versions may be wrong. Before a file is moved,
    its status is written, so that a file with an older time than its predecessor is reported too.
    """
    entry = ledger.store.head(dropped.key)
    if entry is not None:
        return _is_version(entry, dropped)
    for kind in (STATUS, REJECTED):  # a file that was rejected unread has no status
        found = ledger.store.get(outbox_key(dropped.key, kind))
        known = None if found is None else documents.read(found.data, documents.AnyDocument)
        if known is not None and known.input.modified_at > dropped.modified_at:
            return False
    return True


def report(ledger: Ledger, batch: BatchRecord, counts: Counts, usage: Usage) -> None:
    """Write the progress of a batch if it is news; counts never decrease. Raises: StoreUnavailable."""
    dropped = dropped_file(batch)
    if dropped is not None:
        with suppress(PreconditionFailed):  # another process has just written it
            _report(ledger, batch, dropped, counts, usage)


def _report(ledger: Ledger, batch: BatchRecord, dropped: DroppedFile, counts: Counts, usage: Usage) -> None:
    key = outbox_key(dropped.key, STATUS)
    found = ledger.store.get(key)  # before the check, so that the status of a newer version is not replaced
    if not is_newest(ledger, dropped):
        return
    known = None if found is None else documents.read(found.data, documents.OutboxStatus)
    if found is not None and known is not None and known.batch_id == batch.batch_id:
        ours = (_STATES.index(batch.state), counts.finished)
        theirs = (_STATES.index(known.state), known.counts.finished)
        if ours <= theirs or (ours[0] == theirs[0] and found.age_s < STATUS_S):
            return
    document = documents.status_of(batch, dropped, counts, usage, ledger.clock.now())
    _put_over(ledger, found, key, document)


def finish(
    ledger: Ledger, batch_id: str, *, runner: str, is_stopped: Callable[[], bool] = lambda: False
) -> BatchRecord | None:
    """End a batch as `ending.finish` does, and write the results of a dropped file to the outbox."""
    batch = ending.finish(ledger, batch_id, runner=runner, is_stopped=is_stopped)
    if batch is not None and batch.state == "ended":
        with suppress(StoreError):  # a janitor does it too
            publish(ledger, batch, runner=runner)
    return batch


def publish(ledger: Ledger, batch: BatchRecord, *, runner: str) -> bool:
    """Write everything of an ended batch, unless it was written before. False: another process is doing it.

    What a reader removes afterwards does not come back. Raises: StoreError; if interrupted, it is repeated.
    """
    dropped = dropped_file(batch)
    if dropped is None or batch.state != "ended":
        return True
    key = outbox_task_key(batch.batch_id)
    with suppress(RecordDamaged):  # then it is claimed anew, and everything is written again
        found = load(ledger, key, ShardRecord)
        if found is not None and found.record.state == "done":
            return True
    held = shards.claim_task(ledger, batch, key, OUTBOX_POOL, runner=runner)
    if held is None:
        return False
    try:
        is_written = _Publication(ledger, batch, dropped, lambda: shards.beat(ledger, held)).write()
        shards.finish(ledger, held)
    except (LeaseLost, PreconditionFailed):
        shards.give_back(ledger, held)  # if it is still ours, the next attempt finds out who holds the outbox
        return False
    except BatchfileError:
        shards.give_back(ledger, held)
        raise
    if is_written:
        log.info("outbox.written", batch_id=batch.batch_id, key=dropped.key)
    return True


def refuse(ledger: Ledger, file: Entry, message: str) -> bool:
    """Say why `file` is rejected unread, and remove the documents of earlier versions. Repeating it does nothing.

    False: the outbox has just changed; look again. Raises: StoreError.
    """
    rejected = documents.OutboxRejection(
        batch_id=None,
        input=documents.InputVersion(path=file.key, etag=file.etag, modified_at=file.modified_at),
        message=message,
        errors=(LineError(code="not_accepted", message=message),),
    )
    place = outbox_key(file.key, REJECTED)
    found = ledger.store.get(place)
    if found is not None and found.data == documents.encode(rejected):
        return True
    for kind in KINDS:
        if kind != REJECTED:
            ledger.store.delete(outbox_key(file.key, kind))
    try:
        _put_over(ledger, found, place, rejected)
    except PreconditionFailed:
        return False
    log.warning("inbox.rejected", key=file.key, error=message)
    return True


def accept(ledger: Ledger, batch: BatchRecord) -> None:
    """A file has become `batch`: remove rejections of it or of an earlier version.

    Documents that were written meanwhile about the batch itself stay. Raises: StoreUnavailable.
    """
    dropped = dropped_file(batch)
    assert dropped is not None, "only a dropped file has an outbox"
    place = outbox_key(dropped.key, REJECTED)
    found = ledger.store.get(place)
    if found is None:
        return
    said = documents.read(found.data, documents.OutboxRejection)
    is_of_batch = said is not None and said.batch_id == batch.batch_id
    if not is_of_batch and is_newest(ledger, dropped):
        ledger.store.delete(place)


def _put_over(ledger: Ledger, before: Object | Entry | None, key: str, document: documents.Document) -> None:
    """Raises: PreconditionFailed if the document has changed since `before`."""
    etag = None if before is None else before.etag
    ledger.store.put(key, documents.encode(document), absent=etag is None, match=etag)


def _pools(ledger: Ledger, batch: BatchRecord) -> dict[str, documents.PoolFacts]:
    """The pools that ran the batch, without what the planner decided. Engines: as the runners report them now."""
    found = None if not batch.plan_key else load(ledger, batch.plan_key, Plan)
    if found is None:
        return {}
    pools = {}
    for pool, members in found.record.pools.items():
        if pool not in keys.PSEUDO_POOLS:
            runners = list[HeartbeatRecord]()
            with suppress(StoreError):  # a hint, which must not hold up results
                runners = read_heartbeats(ledger, pool)
            pools[pool] = documents.PoolFacts(
                model=(batch.routing.pools.get(pool) or (pool,))[0],
                requests=sum(members.values()),
                engines=tuple(sorted({f"{one.engine} {one.engine_version}".strip() for one in runners})),
                commits=tuple(sorted({"@".join(named) for one in runners for named in one.commits.items()})),
            )
    return pools


def _in_format(ledger: Ledger, batch: BatchRecord) -> Iterable[bytes]:
    """The results in the API format of the input."""
    assert batch.results is not None
    chunks = ledger.store.stream(batch.results.key)
    if batch.input.format == "native":
        return chunks
    return openai_file(chunks, batch_id=batch.batch_id, created=int(batch.created_at), is_output=None)


class _Publication:
    """Writes the results of an ended batch while this process holds the task. `beat` renews it; it raises LeaseLost."""

    def __init__(self, ledger: Ledger, batch: BatchRecord, dropped: DroppedFile, beat: Callable[[], None]) -> None:
        self._ledger = ledger
        self._batch = batch
        self._dropped = dropped
        self._beat = beat

    def write(self) -> bool:
        """False, and nothing written: there is a newer version.

        Raises: LeaseLost, PreconditionFailed if a newer version or another holder came meanwhile.
        """
        ledger, batch, dropped = self._ledger, self._batch, self._dropped
        is_rejected = batch.reason == "failed" and batch.results is None
        last = REJECTED if is_rejected else RECEIPT
        before = ledger.store.head(self._key(last))
        if not is_newest(ledger, dropped):
            return False
        written = self._write_files()
        for kind in KINDS:
            if kind not in {*written, STATUS, last}:  # of an earlier version
                self._check()
                ledger.store.delete(self._key(kind))
        self._check()
        _report(ledger, batch, dropped, batch.counts, batch.usage)
        document: documents.Document
        if is_rejected:
            document = documents.rejected_of(batch, dropped)
        else:
            moved_to = self._move() if dropped.move_done and batch.reason == "completed" else None
            document = documents.receipt_of(batch, dropped, _pools(ledger, batch), written, moved_to)
        self._check()
        _put_over(ledger, before, self._key(last), document)
        return True

    def _key(self, kind: str) -> str:
        return outbox_key(self._dropped.key, kind)

    def _check(self) -> None:
        self._beat()
        if not is_newest(self._ledger, self._dropped):
            raise LeaseLost(f"{self._dropped.key}: a newer version of the file holds the outbox now")

    def _write_files(self) -> dict[str, FileRef]:
        """By kind."""
        batch, store, written = self._batch, self._ledger.store, dict[str, FileRef]()
        if batch.results is not None:
            chunks = _in_format(self._ledger, batch)
            written[RESULTS] = self._write_object(self._key(RESULTS), partial(_write_lines, chunks))
            if self._dropped.wants_parquet:
                written[RESULTS_PARQUET] = self._write_parquet(batch.results)
        for kind, file in ((ERRORS, batch.errors), (REASONS, batch.reasons)):
            if file is not None and file.num_lines:
                lines = store.stream(file.key)
                written[kind] = self._write_object(self._key(kind), partial(_write_lines, lines))
        return written

    def _write_object(self, key: str, fill: "Callable[[_Sink], object]") -> FileRef:
        with self._ledger.store.writer(key) as writer:
            sink = _Sink(writer, self._beat)
            fill(sink)
            self._check()  # right before it becomes visible
            writer.commit()
        return FileRef(key=key, size=sink.size, sha256=sink.digest.hexdigest(), num_lines=sink.num_lines)

    def _write_parquet(self, results: FileRef) -> FileRef:
        """One row per result."""
        from batchfile.lines.parquet import write_results

        def lines() -> Iterator[bytes]:
            for line in iter_lines(self._ledger.store.stream(results.key), line_bytes_max=RESULT_BYTES_MAX):
                self._beat()
                yield line.data or b""

        fill = lambda sink: write_results(lines(), cast(BinaryIO, sink))  # noqa: E731
        return replace(self._write_object(self._key(RESULTS_PARQUET), fill), num_lines=results.num_lines)

    def _move(self) -> str | None:
        """Copy the file out of the inbox, then remove it there; returns its new key. A file that was replaced stays."""
        store, dropped, target = self._ledger.store, self._dropped, done_key(self._dropped.key)
        try:
            try:
                chunks = store.stream(dropped.key, match=dropped.etag)
                self._write_object(target, lambda sink: sink.writelines(chunks))
            except ObjectMissing:  # a process that died here had moved it, or its owner removed it
                return None if store.head(target) is None else target
            self._check()
            store.delete(dropped.key)
        except ObjectChanged:
            return None
        except StoreUnavailable:
            raise
        except StoreError as error:  # say, access denied
            log.error("inbox.not_moved", key=dropped.key, error=str(error))
            return None
        log.info("inbox.moved", key=dropped.key, to=target)
        return target


def _write_lines(lines: Iterable[bytes], sink: "_Sink") -> None:
    sink.writelines(lines)


class _Sink(io.RawIOBase):
    """An object that is being written, as a file; counts and hashes the bytes."""

    def __init__(self, writer: Writer, beat: Callable[[], None]) -> None:
        self.size = self.num_lines = 0
        self.digest = hashlib.sha256()
        self._writer = writer
        self._beat = beat

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.size

    def write(self, data: Any) -> int:
        self._beat()
        chunk = bytes(data)
        self._writer.write(chunk)
        self.digest.update(chunk)
        self.size += len(chunk)
        self.num_lines += chunk.count(b"\n")
        return len(chunk)
