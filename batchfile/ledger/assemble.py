"""Parts into one results file, in input order: a pure function of the input, the plan and the shard records.

Every line exactly once, or nothing. Memory is bounded by one range. Knows no dialect: it writes native lines.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import structlog

from batchfile import bits, layout
from batchfile.errors import BatchDamaged, LeaseLost, ObjectChanged, ObjectMissing
from batchfile.ledger.base import Ledger
from batchfile.ledger.cas import load
from batchfile.lines import custom_id_of
from batchfile.lines.frame import iter_lines
from batchfile.lines.part import PartLine, decode_part
from batchfile.lines.result import encode_result
from batchfile.records import BatchRecord, EndReason, FileRef, PartRef, Plan, Range, ShardRecord
from batchfile.store.base import Writer
from batchfile.words import Counts, Failure, Usage

log = structlog.get_logger()

PART_READS_MAX = 3

_REASONS: dict[EndReason, Failure] = {
    "canceled": Failure(status="canceled", type="canceled", message="The batch was canceled."),
    "expired": Failure(status="expired", type="expired", message="The batch expired before this request ran."),
    "input_changed": Failure(
        type="input_changed", message="The input file was changed while the batch ran; submit it again."
    ),
    "failed": Failure(type="api_error", message="The batch failed before this request ran."),
}
_STORAGE_ERROR = Failure(
    type="storage_error", message="The result was stored and could not be read back; run the request again."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembled:
    """What batch.json will name. `counts` add up to the batch's total."""

    results: FileRef
    errors: FileRef
    counts: Counts
    usage: Usage
    gpu_s: float


def assemble(ledger: Ledger, batch: BatchRecord, plan: Plan, *, nonce: str, beat: Callable[[], None]) -> Assembled:
    """Write the results file and the errors file (the input lines that did not succeed).

    Calls `beat` between ranges so that the caller can renew its lease. Raises: BatchDamaged where a shard is
    neither done nor closed, or a line would be written twice or never; LeaseLost where the work is not ours any more.
    """
    counts = {"succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
    usage, gpu_s = Usage(), 0.0
    requests = _Requests(ledger, batch)
    results_key = layout.results_key(batch.batch_id, nonce)
    errors_key = layout.errors_key(batch.batch_id, nonce)
    with _HashingWriter(ledger, results_key) as results, _HashingWriter(ledger, errors_key) as errors:
        for n, span in enumerate(plan.ranges):
            beat()
            records = list(_records(ledger, batch, plan, n))
            for record in records:
                usage += record.usage
                gpu_s += record.gpu_s
            lines = _range_lines(ledger, batch, span, records, requests)
            for item in lines:
                counts[item.status] += 1
            results.write_lines([item.result for item in lines])
            if any(item.status != "succeeded" for item in lines):
                raw = requests.of(span)
                if raw is not None:
                    failed = [raw[item.line] for item in lines if item.status != "succeeded"]
                    errors.write_lines([line for line in failed if line is not None])
        if results.num_lines != batch.total:
            raise BatchDamaged(f"{batch.batch_id}: {results.num_lines} results for {batch.total} requests")
        made = {"results": results.commit(), "errors": errors.commit()}
        return Assembled(**made, counts=Counts(**counts), usage=usage, gpu_s=round(gpu_s, 3))


def _records(ledger: Ledger, batch: BatchRecord, plan: Plan, n: int) -> Iterator[ShardRecord]:
    for pool, shards in plan.pools.items():
        if n not in shards:
            continue
        found = load(ledger, layout.shard_key(batch.batch_id, pool, n), ShardRecord)
        if found is None or found.record.state not in {"done", "closed"}:
            state = "missing" if found is None else found.record.state
            raise BatchDamaged(f"{batch.batch_id}: shard {pool}/{n} is {state} while the batch is assembled")
        yield found.record


def _range_lines(
    ledger: Ledger, batch: BatchRecord, span: Range, records: list[ShardRecord], requests: "_Requests"
) -> list[PartLine]:
    """Every line of the range, once, in order."""
    by_line: dict[int, PartLine] = {}
    for record in records:
        for part in record.parts:
            for item in _read_part(ledger, batch, part):
                if item.line in by_line or not 0 <= item.line < span.num_lines:
                    raise BatchDamaged(f"{batch.batch_id}: line {span.first + item.line} has two results")
                by_line[item.line] = item
    if len(by_line) < span.num_lines:
        _fill(by_line, records, span, requests.of(span))
    return [by_line[line] for line in range(span.num_lines)]


def _fill(
    by_line: dict[int, PartLine], records: list[ShardRecord], span: Range, raw: list[bytes | None] | None
) -> None:
    """Give each line without a result the reason why: its shard was closed, or its part was lost."""
    committed = 0
    reason: EndReason = "failed"
    for record in records:
        committed |= bits.parse(record.done)
        reason = record.reason or reason
    for line in range(span.num_lines):
        if line not in by_line:
            failure = _STORAGE_ERROR if committed >> line & 1 else _REASONS[reason]
            custom_id = None if raw is None else custom_id_of(raw[line] or b"")
            by_line[line] = PartLine(line, failure.status, encode_result(custom_id, failure, ""))


def _read_part(ledger: Ledger, batch: BatchRecord, part: PartRef) -> list[PartLine]:
    """The part's lines; none where it can not be read or is not what its record says: those become errors.

    Raises: LeaseLost where another has ended the batch meanwhile, and removed its parts.
    """
    for attempt in range(PART_READS_MAX):
        if attempt:
            ledger.clock.sleep(2.0**attempt)
        found = ledger.store.get(part.key)
        if found is not None and hashlib.sha256(found.data).hexdigest() == part.sha256:
            return decode_part(found.data)
    now = load(ledger, layout.batch_key(batch.batch_id), BatchRecord)
    if now is None or now.record.state not in {"open", "ending"}:
        raise LeaseLost("someone else has ended the batch")
    log.error("part.lost", batch_id=batch.batch_id, key=part.key, found=found is not None)
    return []


class _Requests:
    """The requests as they came in. None of them once the input is not the pinned one any more."""

    def __init__(self, ledger: Ledger, batch: BatchRecord) -> None:
        self._ledger = ledger
        self._batch = batch
        self._is_gone = False

    def of(self, span: Range) -> list[bytes | None] | None:
        """A line over the limit is None: no run will ever take it."""
        if self._is_gone:
            return None
        pinned = self._batch.input
        try:
            chunks = self._ledger.store.stream(pinned.key, span.start, span.end, match=pinned.etag)
            return [line.data for line in iter_lines(chunks, span.start)]
        except (ObjectChanged, ObjectMissing) as error:
            self._is_gone = True
            log.warning("input.changed", batch_id=self._batch.batch_id, error=str(error))
            return None


class _HashingWriter:
    """A streamed object of lines that counts and hashes what goes through."""

    def __init__(self, ledger: Ledger, key: str) -> None:
        self.num_lines = 0
        self._key = key
        self._size = 0
        self._hash = hashlib.sha256()
        self._writer: Writer = ledger.store.writer(key)

    def write_lines(self, lines: list[bytes]) -> None:
        data = b"\n".join([*lines, b""]) if lines else b""
        self.num_lines += len(lines)
        self._size += len(data)
        self._hash.update(data)
        self._writer.write(data)

    def commit(self) -> FileRef:
        self._writer.commit()
        return FileRef(key=self._key, size=self._size, sha256=self._hash.hexdigest(), num_lines=self.num_lines)

    def __enter__(self) -> Self:
        self._writer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)
