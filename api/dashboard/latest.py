"""Reads a few results of a batch together with their prompts, in bounded time and memory. Synchronous."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice

import msgspec

from batchfile.errors import BatchfileError, InvalidRequest
from batchfile.ledger import keys
from batchfile.ledger.base import Ledger
from batchfile.ledger.batches import read_plan
from batchfile.ledger.cas import load
from batchfile.ledger.records import BatchRecord, Plan, Range, ShardRecord
from batchfile.ledger.shard_runs import ShardRow
from batchfile.lines.framing import iter_lines
from batchfile.lines.parse import parse_request
from batchfile.lines.result import RESULT_BYTES_MAX, NativeMessage, decode_part, decode_result
from batchfile.types import Defaults, Request

from ..native.schemas import StageError
from .schemas import Latest, LatestResult, Turn

CHARS_MAX = 10_000  # of one text; the rest is cut
SHARDS_MAX = 2  # whose results are read
INPUT_BYTES_MAX = 4 * 1024 * 1024  # of the input of one shard
RESULT_BYTES_READ_MAX = 16 * 1024 * 1024  # of the results file of an ended batch
PLANS_MAX = 8

_ANY: dict[int, bytes] = {}


class LatestReader:
    """Keeps the plans of the batches that were looked at last, because they never change."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._lock = threading.Lock()
        self._plans: OrderedDict[str, Plan] = OrderedDict()

    def read(self, batch: BatchRecord, rows: Sequence[ShardRow], limit: int) -> Latest:
        """`rows`: the shards of an open batch. Raises: StoreError."""
        plan = self._plan(batch)
        if plan is None:
            return Latest(data=[])
        found = self._ended(batch, plan, limit) if batch.state == "ended" else self._open(batch, plan, rows, limit)
        return Latest(data=list(islice(found, limit)))

    def _open(self, batch: BatchRecord, plan: Plan, rows: Sequence[ShardRow], limit: int) -> Iterator[LatestResult]:
        """The newest results of the shards that were written last."""
        store = self._ledger.store
        begun = sorted((row for row in rows if row.num_finished), key=lambda row: row.modified_at, reverse=True)
        for row in begun[:SHARDS_MAX]:
            stored = load(self._ledger, keys.shard_key(batch.batch_id, row.pool, row.n), ShardRecord)
            part = None if stored is None or not stored.record.parts else store.get(stored.record.parts[-1].key)
            if part is None:  # the batch has just ended
                continue
            span = plan.ranges[row.n]
            lines = decode_part(part.data)[-limit:]
            wanted = self._lines(batch, [span], {line.line for line in lines})
            for line in reversed(lines):
                yield _result(span.first + line.line, line.result, wanted.get(line.line), batch.defaults)

    def _ended(self, batch: BatchRecord, plan: Plan, limit: int) -> Iterator[LatestResult]:
        if batch.results is None:
            return
        stream = self._ledger.store.stream(batch.results.key, 0, min(batch.results.size, RESULT_BYTES_READ_MAX))
        results = list(islice(iter_lines(stream, line_bytes_max=RESULT_BYTES_MAX), limit))
        spans = [span for span in plan.ranges if span.first < limit]
        wanted = self._lines(batch, spans, set(range(len(results))))
        for index, line in enumerate(results):
            with suppress(msgspec.DecodeError):  # the last one is cut
                yield _result(index, line.data or b"", wanted.get(index), batch.defaults)

    def _lines(self, batch: BatchRecord, spans: Sequence[Range], numbers: set[int]) -> dict[int, bytes]:
        """The request lines with these numbers, counted from the first span's first line."""
        start, end = spans[0].start, min(spans[-1].end, spans[0].start + INPUT_BYTES_MAX)
        try:
            chunks = list(self._ledger.store.stream(batch.input.key, start, end, match=batch.input.etag))
        except BatchfileError:  # removed, or replaced: results without their prompts are better than none
            return _ANY
        lines = islice(iter_lines(chunks), max(numbers, default=-1) + 1)
        return {number: line.data for number, line in enumerate(lines) if number in numbers and line.data is not None}

    def _plan(self, batch: BatchRecord) -> Plan | None:
        if not batch.plan_key:
            return None
        with self._lock:
            known = self._plans.get(batch.plan_key)
        plan = read_plan(self._ledger, batch) if known is None else known
        with self._lock:
            self._plans[batch.plan_key] = plan
            self._plans.move_to_end(batch.plan_key)
            if len(self._plans) > PLANS_MAX:
                self._plans.popitem(last=False)
        return plan


def turns_of(request: Request) -> list[Turn]:
    """What a request says, as people read it."""
    if request.raw is not None:
        return [_turn("input", one if isinstance(one, str) else f"{len(one)} token IDs") for one in request.raw.inputs]
    return [_turn(message.role, message.content) for message in request.messages]


def _turn(role: str, text: str) -> Turn:
    return Turn(role=role, text=text[:CHARS_MAX], cut=max(0, len(text) - CHARS_MAX))


def _result(index: int, data: bytes, line: bytes | None, defaults: Defaults) -> LatestResult:
    found = decode_result(data)
    prompt: list[Turn] = []
    try:
        prompt = [] if line is None else turns_of(parse_request(line, defaults))
    except InvalidRequest:  # the result says what is wrong with it
        prompt = [_turn("line", (line or b"").decode("utf-8", "replace"))]
    text = _text(found.message) if found.vectors is None else f"{len(found.vectors)} vectors"
    return LatestResult(
        index=index,
        custom_id=found.custom_id,
        status=found.status,
        prompt=prompt,
        answer=None if text is None else text[:CHARS_MAX],
        cut=0 if text is None else max(0, len(text) - CHARS_MAX),
        stop_reason=found.stop_reason,
        model=found.model,
        input_tokens=None if found.usage is None else found.usage.input_tokens,
        output_tokens=None if found.usage is None else found.usage.output_tokens,
        error=None
        if found.error is None
        else StageError(type=found.error.type, message=found.error.message[:CHARS_MAX]),
    )


def _text(message: NativeMessage | None) -> str | None:
    if message is None:
        return None
    calls = (f"{block.name}({msgspec.json.encode(block.input).decode()})" for block in message.content if block.name)
    texts: Iterable[str] = chain((block.text for block in message.content if block.type == "text"), calls)
    return "\n".join(texts)
