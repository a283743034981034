"""Keeps the input of a batch readable: its bytes as they were planned, and the ids of its requests.

A user's own file may grow, be touched or get other permissions. Then its etag differs although the planned bytes are
still there; only the digest in the plan proves that. A file that grew is copied up to the planned size, because it may
keep growing. Next to such an input the planner stores the ids, so that no change loses them: one JSON line for each
request in input order, null if it has none.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Self

import msgspec
import structlog

from batchfile.errors import ObjectChanged, ObjectMissing, StoreError, StoreUnavailable
from batchfile.ledger import keys
from batchfile.ledger.base import Ledger
from batchfile.ledger.cas import load, update_batch
from batchfile.ledger.records import BatchRecord, FileRef, InputRef, Range
from batchfile.lines.framing import iter_lines
from batchfile.store.base import Entry, Writer

log = structlog.get_logger()

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(str | None)


def repin(ledger: Ledger, batch: BatchRecord, beat: Callable[[], None] = lambda: None) -> BatchRecord | None:
    """The batch with a readable input; None if the planned bytes are gone.

    Reads the whole input; calls `beat` every MiB. Raises: StoreError, BatchDamaged.
    """
    pinned = batch.input
    now = load(ledger, keys.batch_key(batch.batch_id), BatchRecord)
    if now is None or now.record.state not in {"open", "ending"}:
        return None
    if now.record.input != pinned:
        return now.record  # another process has repinned it
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
        if _digest(ledger, pinned.key, entry.etag, beat) == pinned.sha256:
            return replace(pinned, etag=entry.etag)
    return None


def _digest(ledger: Ledger, key: str, etag: str | None = None, beat: Callable[[], None] = lambda: None) -> str:
    digest = hashlib.sha256()
    for chunk in ledger.store.stream(key, match=etag):
        beat()
        digest.update(chunk)
    return digest.hexdigest()


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


class HashingWriter:
    """Writes an object of lines, and counts and hashes what it writes."""

    def __init__(self, ledger: Ledger, key: str) -> None:
        self.num_lines = 0
        self._key = key
        self._size = 0
        self._hash = hashlib.sha256()
        self._writer: Writer = ledger.store.writer(key, is_new=True)

    def write_data(self, data: bytes, num_lines: int) -> None:
        """Write bytes that count as so many lines."""
        self.num_lines += num_lines
        self._pass(data)

    def write_lines(self, lines: list[bytes]) -> None:
        data = b"\n".join([*lines, b""]) if lines else b""
        self.num_lines += len(lines)
        self._pass(data)

    def write_long(self, chunks: Iterable[bytes]) -> None:
        """Write a line that is too long for memory, with or without its newline."""
        last = b""
        for chunk in chunks:
            self._pass(chunk)
            last = chunk or last
        if not last.endswith(b"\n"):
            self._pass(b"\n")
        self.num_lines += 1

    def _pass(self, data: bytes) -> None:
        self._size += len(data)
        self._hash.update(data)
        self._writer.write(data)

    def commit(self) -> FileRef:
        self._writer.commit()
        return FileRef(key=self._key, size=self._size, sha256=self._hash.hexdigest(), num_lines=self.num_lines)

    def __enter__(self) -> Self:
        self._writer.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.__exit__(*error)


class CustomIdsWriter(HashingWriter):
    def __init__(self, ledger: Ledger, batch_id: str) -> None:
        super().__init__(ledger, keys.custom_ids_key(batch_id, ledger.new_id()[:12]))

    def write(self, ids: Sequence[str | None]) -> None:
        self.write_lines([_encoder.encode(custom_id) for custom_id in ids])


class CustomIds:
    """The stored ids, read on demand: twice, the first time to prove that they are unchanged."""

    def __init__(self, ledger: Ledger, kept: FileRef | None) -> None:
        self.are_kept = kept is not None
        self._ledger = ledger
        self._kept = kept
        self._ids: Iterator[str | None] | None = None
        self._at = 0  # the index of the next request

    def of(self, span: Range) -> list[str | None]:
        """None for each unknown id. Ranges must be asked for in their order, each once."""
        if self._ids is None:
            self._ids = self._read()
        ids = list(islice(self._ids, span.first - self._at, span.first - self._at + span.num_lines))
        self._at = span.first + span.num_lines
        return ids + [None] * (span.num_lines - len(ids))

    def _read(self) -> Iterator[str | None]:
        if self._kept is None or not self._is_whole(self._kept):
            self.are_kept = False
            return iter(())
        stored = iter_lines(self._ledger.store.stream(self._kept.key))
        return (_decoder.decode(line.data or b"null") for line in stored)

    def _is_whole(self, kept: FileRef) -> bool:
        try:
            return _digest(self._ledger, kept.key) == kept.sha256
        except StoreUnavailable:
            raise
        except StoreError as error:
            log.error("custom_ids.lost", key=kept.key, error=str(error))
            return False
