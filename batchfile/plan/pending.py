"""Creates and plans a batch that exists before its plan, made from a stored or dropped file.

Any process may plan it; one conditional write decides, however many try. The batch opens, or it fails with the problems
of the file. A file that is not plain JSONL is converted once: unpacked, or its rows are written as lines. Streamed.
"""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import PurePath
from typing import Any, BinaryIO, cast

import structlog

from batchfile import tracing
from batchfile.errors import (
    BatchfileError,
    ConverterKilled,
    InvalidFile,
    LeaseLost,
    ObjectChanged,
    ObjectMissing,
    StoreError,
    TooLarge,
)
from batchfile.ledger import batches, ending, keys, retention, shards
from batchfile.ledger.base import Ledger
from batchfile.ledger.batches import Draft, Planned
from batchfile.ledger.cas import update_batch
from batchfile.ledger.records import BatchRecord, EndReason, InputRef, LineError, PendingInput, PlanRules
from batchfile.ledger.shards import Lease
from batchfile.lines.converter import convert
from batchfile.lines.file_formats import CHUNK_BYTES, HEAD_BYTES, ChunkReader, FileFormat, detect, plain_head
from batchfile.lines.kinds import KIND_BYTES, FileKind, refusal
from batchfile.lines.kinds import detect as detect_kind
from batchfile.lines.parquet import kind_of_table
from batchfile.lines.split_document import elements
from batchfile.plan.planner import plan_input
from batchfile.plan.policy import LinesRefused, policy_of
from batchfile.plan.reuse import Reuse, source_of
from batchfile.rows.prompt import RowPrompt, request_lines
from batchfile.rows.read import read_rows
from batchfile.store.base import Store

log = structlog.get_logger()

UNPACKED_BYTES_MAX = 256 * 1024**3  # a small file may unpack to any size
CRASHES_MAX = 3  # of processes that plan one file; then the file is to blame


def create(ledger: Ledger, draft: Draft, source: PendingInput) -> BatchRecord:
    """Create a batch. The same draft of the same source again finds its own batch.

    Apart from `submit.create`, because such a create is answered before its input is read: it is committed without a
    plan, and `plan` opens it.
    Raises: BatchDamaged where another batch has this id, or its create was abandoned; StoreUnavailable.
    """
    with tracing.span("batchfile.create", batches.attributes_of(draft)):
        return _create(ledger, draft, source)


def _create(ledger: Ledger, draft: Draft, source: PendingInput) -> BatchRecord:
    assert draft.created_at is not None, "an announced draft has a creation time"
    record = replace(
        batches.record_of(ledger, draft, source.input),
        state="planning",
        origin=source.origin,
        rules=source.rules,
        kept_s=source.kept_s,
    )
    batches.announce(ledger, draft)
    made = batches.commit(ledger, record)
    if made.is_ours:
        log.info("batch.created", batch_id=draft.batch_id, key=source.input.key)
    return made.batch


def _endpoint(batch: BatchRecord) -> str | None:
    return None if batch.rules is None else batch.rules.endpoint


def plan(
    ledger: Ledger, batch_id: str, *, runner: str, is_stopped: Callable[[], bool] = lambda: False
) -> BatchRecord | None:
    """Open a batch that is planning, or let it fail or expire. Returns the resulting record; None if another process is
    planning it or `is_stopped` was true (checked about every MiB).

    Raises: StoreUnavailable, BatchDamaged.
    """
    batch = batches.read_batch(ledger, batch_id)
    if batch is None or batch.state != "planning":
        return batch
    if retention.is_over(ledger, batch):
        batches.end(ledger, batch_id, "expired")
        return ending.finish(ledger, batch_id, runner=runner)
    held = shards.claim_task(ledger, batch, keys.planning_key(batch_id), keys.PLANNING_POOL, runner=runner, counts=True)
    if held is None:
        return None
    if held.record.crash_count >= CRASHES_MAX:
        return _fail(ledger, batch, (_poison(batch, held.record.crash_count),), "failed")
    return _plan_held(ledger, held, is_stopped)


def _plan_held(ledger: Ledger, held: Lease, is_stopped: Callable[[], bool]) -> BatchRecord | None:
    batch = held.batch
    try:
        with tracing.span("batchfile.plan", batches.attributes_of(batch), of=batch.traceparent):
            planned = _read(ledger, batch, shards.beating(ledger, held, is_stopped))
    except LeaseLost:
        return None
    except shards.TaskStopped:  # given back: that this process ends says nothing about the file
        shards.give_back(ledger, held)
        return None
    except ConverterKilled as error:  # not given back: the lease is to expire and count as a crash
        shards.leave(ledger, held)
        log.error("planning.killed", batch_id=batch.batch_id, error=str(error))
        return None
    except LinesRefused as error:
        return _fail(ledger, batch, error.errors, "failed")
    except BatchfileError as error:
        if not _is_fault(ledger, batch, error):
            shards.give_back(ledger, held)
            raise
        is_other = _endpoint(batch) is None and isinstance(error, ObjectChanged | ObjectMissing)
        return _fail(ledger, batch, (_of_file(batch, error),), "input_changed" if is_other else "failed")
    try:
        return _open(ledger, batch, planned)
    except StoreError:
        shards.give_back(ledger, held)  # only a crash of this process may count against the file
        raise


def _read(ledger: Ledger, batch: BatchRecord, beat: Callable[[], None]) -> Planned:
    """Convert the file if it is not plain JSONL, and plan it."""
    try:
        key = _readable(ledger, batch, beat)
    except TooLarge:
        raise
    except InvalidFile as error:
        raise LinesRefused((LineError(code="invalid_file", message=str(error)),)) from error
    rules = batch.rules or PlanRules()
    planned = plan_input(
        ledger,
        batch.batch_id,
        key,
        routing=batch.routing,
        stage=batch.stage,
        policy=policy_of(rules),
        beat=beat,
        name=f"{_name(batch)}:" if rules.endpoint is None else _name(batch),
        defaults=batch.defaults,
        reuse=_reuse(ledger, rules),
    )
    if key == batch.input.key and planned.input.etag != batch.input.etag:
        raise ObjectChanged(f"{batch.input.key} is not the object that the batch was made from")
    return planned


def _reuse(ledger: Ledger, rules: PlanRules) -> Reuse | None:
    if not (rules.reuse_from or rules.reuse_notes):
        return None
    sources = tuple(source_of(ledger, batch_id) for batch_id in rules.reuse_from)
    return Reuse(sources=sources, is_sampled_too=rules.is_sampled_reused, notes=rules.reuse_notes)


def _readable(ledger: Ledger, batch: BatchRecord, beat: Callable[[], None]) -> str:
    """The key of the requests as plain lines: of the object itself, or of its conversion. A dropped table with a column
    prompt or messages becomes requests.

    Raises: InvalidFile (no requests, damaged data, a missing column, too much for one process), ConverterKilled,
    ObjectChanged, ObjectMissing, StoreUnavailable.
    """
    store, pinned, name = ledger.store, batch.input, _name(batch)
    is_dropped = _endpoint(batch) is None
    head = b"".join(store.stream(pinned.key, 0, min(KIND_BYTES, pinned.size), match=pinned.etag))
    form = detect(name, head[:HEAD_BYTES])
    if form == "parquet" and not is_dropped:
        raise InvalidFile(f"{name}: is Parquet data, which has no url and body; write its requests as JSONL")
    # In another process, because this one may hold an engine or be a service.
    if form == "parquet":
        said = b"".join(convert(name, "parquet-columns", _stream(store, pinned, form), beat=beat))
        kind = kind_of_table(*json.loads(said))
    else:
        kind = detect_kind(name, plain_head(name, form, head, KIND_BYTES))
    is_table = is_dropped and kind.content == "rows" and kind.layout != "text" and kind.has_prompts
    if not is_table and not kind.is_ready:
        raise InvalidFile(refusal(kind, PurePath(name).name if is_dropped else "FILE", name))
    if form == kind.layout == "jsonl" and not is_table:
        return pinned.key
    stream = _stream(store, pinned, form)
    conversion = "parquet-rows" if form == "parquet" and is_table else form
    chunks = _limited(convert(name, conversion, stream, beat=beat), name)
    chunks = elements(chunks, name) if kind.is_array else chunks
    key = keys.input_key(batch.batch_id, ledger.new_id()[:12])
    with store.writer(key, is_new=True) as writer:
        for chunk in _requests(chunks, kind, name) if is_table else chunks:
            beat()
            writer.write(chunk)
        writer.commit()
    return key


def _stream(store: Store, pinned: InputRef, form: FileFormat) -> BinaryIO:
    if form == "parquet":
        return io.BufferedReader(_Ranges(store, pinned), CHUNK_BYTES)
    return cast(BinaryIO, ChunkReader(store.stream(pinned.key, match=pinned.etag)))


def _requests(chunks: Iterator[bytes], kind: FileKind, name: str) -> Iterator[bytes]:
    """The requests of a table with a column prompt or messages."""
    prompt = RowPrompt()
    prompt.check(name, kind.columns)
    return request_lines(read_rows(chunks, kind, name), prompt)


def _limited(chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > UNPACKED_BYTES_MAX:
            raise TooLarge(f"{name}: it unpacks to more than {UNPACKED_BYTES_MAX // 1024**3} GiB; split it")
        yield chunk


def _open(ledger: Ledger, batch: BatchRecord, planned: Planned) -> BatchRecord | None:
    """An input without any request that can run is rejected with its lines."""
    now = ledger.clock.now()
    if _endpoint(batch) is None and planned.num_rejected == planned.total:
        message = f"{_name(batch)}: none of its {planned.total:,} lines is a valid request"
        whole = LineError(code="invalid_file", message=message)
        return _fail(ledger, batch, (whole, *batches.read_rejected(ledger, batch.batch_id, planned.plan)), "failed")

    batches.enqueue(ledger, batch, planned.plan)
    opened = _leave_planning(
        ledger,
        batch,
        state="open",
        input=planned.input,
        plan_key=planned.plan_key,
        total=planned.total,
        planned_at=now,
        reused=planned.reused_from,
        fingerprints=planned.fingerprints,
        reuse_note=planned.reuse_note,
    )
    if opened is None:  # it was canceled and deleted while this process slept
        with suppress(StoreError):
            retention.remove_objects(ledger, batch)
        return None
    batches.notify(ledger, planned.plan.pools)
    log.info("batch.planned", batch_id=batch.batch_id, requests=planned.total, pools=sorted(planned.plan.pools))
    return opened


def _fail(ledger: Ledger, batch: BatchRecord, errors: tuple[LineError, ...], reason: EndReason) -> BatchRecord | None:
    now, detail = ledger.clock.now(), errors[0].message
    failed = _leave_planning(ledger, batch, state="ended", reason=reason, detail=detail, ended_at=now, problems=errors)
    if failed is not None:
        log.info("batch.failed", batch_id=batch.batch_id, num_errors=len(errors), code=errors[0].code)
    return failed


def _leave_planning(ledger: Ledger, batch: BatchRecord, **changes: Any) -> BatchRecord | None:
    """The record with these changes; unchanged if it is no longer planning; None if it is gone."""

    def decide(record: BatchRecord) -> BatchRecord | None:
        return replace(record, **changes) if record.state == "planning" else None

    found = update_batch(ledger, keys.batch_key(batch.batch_id), decide)
    return None if found is None else found.record


def _is_fault(ledger: Ledger, batch: BatchRecord, error: BatchfileError) -> bool:
    """Is the file itself permanently at fault? The store must confirm in two ways that it is missing or changed.

    Raises: StoreError if the store does not answer.
    """
    if not isinstance(error, ObjectChanged | ObjectMissing):
        return isinstance(error, InvalidFile)
    entry = ledger.store.head(batch.input.key)
    return entry is None or entry.etag != batch.input.etag


def _name(batch: BatchRecord) -> str:
    """The name of the input in messages. A batch with an endpoint has an uploaded file; its user never saw the key."""
    return batch.input.key if _endpoint(batch) is None else "the file"


def _poison(batch: BatchRecord, num: int) -> LineError:
    message = (
        f"{_name(batch)}: {num} processes crashed one after another while they read it. It may need more memory "
        "than they have: split it, or write it again as JSONL"
    )
    return LineError(code="invalid_file", message=message)


def _of_file(batch: BatchRecord, error: Exception) -> LineError:
    if isinstance(error, TooLarge):
        return LineError(code="too_many_tasks", message=str(error))
    if isinstance(error, InvalidFile):
        code = "invalid_file" if _endpoint(batch) is None else "empty_file"
        return LineError(code=code, message=str(error))
    return LineError(code="input_file_missing", message="The input file was removed or replaced before it was read.")


class _Ranges(io.RawIOBase):
    """A pinned object as a seekable file."""

    def __init__(self, store: Store, pinned: InputRef) -> None:
        self._store = store
        self._pinned = pinned
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._pinned.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        start, end = self._at, min(self._at + len(buffer), self._pinned.size)
        if start >= end:
            return 0
        for chunk in self._store.stream(self._pinned.key, start, end, match=self._pinned.etag):
            at = self._at - start
            buffer[at : at + len(chunk)] = chunk
            self._at += len(chunk)
        return self._at - start
