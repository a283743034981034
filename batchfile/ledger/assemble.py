"""Merges the parts of a batch into one results file in input order.

The result depends only on the input, the plan and the shard records. It has every line exactly once, or nothing is
written. Memory is bounded by the records, one range and some parts read ahead. It knows no API format: it writes
native lines.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from itertools import groupby, islice

import structlog

from batchfile.errors import BatchDamaged, LeaseLost, ObjectChanged, ObjectMissing
from batchfile.ledger import bitmaps, keys
from batchfile.ledger.base import Ledger
from batchfile.ledger.cas import load
from batchfile.ledger.inputs import CustomIds, HashingWriter, repin
from batchfile.ledger.parallel import in_order
from batchfile.ledger.profile import Profile, ShardEnd, profile_of
from batchfile.ledger.records import BatchRecord, EndReason, FileRef, PartRef, Plan, Range, ShardRecord
from batchfile.lines.envelope import custom_id_of
from batchfile.lines.failures import FailureTally
from batchfile.lines.framing import Line, iter_lines
from batchfile.lines.result import PartLine, decode_part, encode_result
from batchfile.types import Counts, Failure, FailureGroup, Usage

log = structlog.get_logger()

PART_READS_MAX = 3
PARTS_AHEAD_BYTES = 32 * 1024 * 1024
SKIP_BYTES_MAX = 4 * 1024 * 1024  # bytes of the input to read past, rather than send another request

Shard = tuple[str, int]  # a pool, and the number of a range
Records = dict[Shard, ShardRecord]

_REASONS: dict[EndReason, Failure] = {
    "canceled": Failure(status="canceled", type="canceled", message="The batch was canceled."),
    "expired": Failure(status="expired", type="expired", message="The batch expired before this request ran."),
    "input_changed": Failure(
        type="input_changed", message="The input file changed while the batch ran; submit it again."
    ),
    "failed": Failure(type="api_error", message="The batch failed before this request ran."),
}
_STORAGE_ERROR = Failure(
    type="storage_error", message="The result was stored but cannot be read back; run the request again."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembled:
    """What `batch.json` will reference. `counts` add up to the batch's total. `reasons` None: all succeeded.
    `fingerprints`: as in the batch.
    """

    results: FileRef
    errors: FileRef
    reasons: FileRef | None
    failures: tuple[FailureGroup, ...]
    counts: Counts
    usage: Usage
    gpu_s: float
    fingerprints: dict[str, tuple[str, ...]]
    profile: Profile | None


def assemble(
    ledger: Ledger,
    batch: BatchRecord,
    plan: Plan,
    records: Records,
    *,
    written_at: Mapping[str, float],
    nonce: str,
    beat: Callable[[], None],
) -> Assembled:
    """Write the results, the errors (the input lines that did not succeed) and the reasons (why each did not).

    If the input has changed, the errors file has result lines instead, provided the ids of the requests were kept.
    `written_at`: when each shard record was last written, by its key. Reads each part once, several at a time. Calls
    `beat` between ranges so that the caller can renew its lease.
    Raises: BatchDamaged where a shard is neither done nor closed, or a line would be written twice or never; LeaseLost
    where another process has taken over the work.
    """
    counts = {"succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
    usage, gpu_s, tally = Usage(), 0.0, FailureTally()
    requests = _Requests(ledger, batch, beat)
    ids = CustomIds(ledger, plan.ids)
    results_key = keys.results_key(batch.batch_id, nonce)
    errors_key = keys.errors_key(batch.batch_id, nonce)
    by_range = [list(_records_of(batch, plan, n, records)) for n in range(len(plan.ranges))]
    parts = in_order(
        ledger,
        lambda part: _read_part(ledger, batch, part),
        (part for found in by_range for record in found for part in record.parts),
        size_of=lambda part: part.size,
        size_max=PARTS_AHEAD_BYTES,
    )
    reasons: HashingWriter | None = None
    with ExitStack() as stack:
        stack.enter_context(closing(parts))
        results = stack.enter_context(HashingWriter(ledger, results_key))
        errors = stack.enter_context(HashingWriter(ledger, errors_key))
        for span, found in zip(plan.ranges, by_range, strict=True):
            beat()
            for record in found:
                usage += record.usage
                gpu_s += record.gpu_s
            lines = _range_lines(batch, span, found, parts, requests, ids)
            for item in lines:
                counts[item.status] += 1
            results.write_lines([item.result for item in lines])
            failed = [item for item in lines if item.status != "succeeded"]
            if failed:
                raw = requests.of(span)
                if raw is not None:
                    _write_requests(errors, requests, [raw[item.line] for item in failed])
                elif ids.are_kept:
                    errors.write_lines([item.result for item in failed])
                if reasons is None:
                    reasons = stack.enter_context(HashingWriter(ledger, keys.reasons_key(batch.batch_id, nonce)))
                # Without the input, blank lines in the range are not known.
                rows = [item.line if raw is None else raw[item.line].row - 1 for item in failed]
                reasons.write_lines(
                    [
                        tally.add_result(item.result, span.first_row + row)
                        for item, row in zip(failed, rows, strict=True)
                    ]
                )
        if results.num_lines != batch.total:
            raise BatchDamaged(f"{batch.batch_id}: {results.num_lines} results for {batch.total} requests")
        return Assembled(
            results=results.commit(),
            errors=errors.commit(),
            reasons=None if reasons is None else reasons.commit(),
            failures=tally.top(),
            counts=Counts(**counts, rejected=tally.num_rejected),
            usage=usage,
            gpu_s=round(gpu_s, 3),
            fingerprints=fingerprints_of(batch, records.values()),
            profile=_profile(batch, records, written_at),
        )


def _write_requests(errors: HashingWriter, requests: "_Requests", lines: list[Line]) -> None:
    for is_long, same in groupby(lines, key=lambda line: line.data is None):
        if is_long:
            for line in same:
                errors.write_long(requests.bytes_of(line))
        else:
            errors.write_lines([line.data for line in same if line.data is not None])


def _profile(batch: BatchRecord, records: Records, written_at: Mapping[str, float]) -> Profile | None:
    ends = []
    for (pool, n), record in records.items():
        at = written_at.get(keys.shard_key(batch.batch_id, pool, n))
        if at is not None and pool not in keys.PSEUDO_POOLS:
            counts = record.counts
            num_run = counts.succeeded + counts.errored - counts.rejected
            ends.append(ShardEnd(at, num_run, record.usage.output_tokens, record.request_s))
    return profile_of(batch.created_at, ends)


def fingerprints_of(batch: BatchRecord, records: Iterable[ShardRecord]) -> dict[str, tuple[str, ...]]:
    """Pool -> the distinct fingerprints of the engines that made its results, reused ones included."""
    found = {pool: set(known) for pool, known in batch.fingerprints.items()}
    for record in records:
        if record.parts and record.pool not in keys.PSEUDO_POOLS:
            found.setdefault(record.pool, set()).update(record.fingerprints or ("",))
    return {pool: tuple(sorted(known)) for pool, known in found.items()}


def _records_of(batch: BatchRecord, plan: Plan, n: int, records: Records) -> Iterator[ShardRecord]:
    for pool, shards in plan.pools.items():
        if n not in shards:
            continue
        record = records.get((pool, n))
        if record is None or record.state not in {"done", "closed"}:
            state = "missing" if record is None else record.state
            raise BatchDamaged(f"{batch.batch_id}: shard {pool}/{n} is {state} while the batch is assembled")
        yield record


def _range_lines(
    batch: BatchRecord,
    span: Range,
    records: list[ShardRecord],
    parts: Iterator[bytes | None],
    requests: "_Requests",
    ids: CustomIds,
) -> list[PartLine]:
    """Every line of the range, once, in order. `parts`: of the records, in their order; None for a lost part."""
    by_line: dict[int, PartLine] = {}
    for record in records:
        for data in islice(parts, len(record.parts)):
            for item in () if data is None else decode_part(data):
                if item.line in by_line or not 0 <= item.line < span.num_lines:
                    raise BatchDamaged(f"{batch.batch_id}: line {span.first + item.line} has two results")
                by_line[item.line] = item
    if len(by_line) < span.num_lines:
        raw = requests.of(span)
        known = ids.of(span) if raw is None else [custom_id_of(line.data or line.head) for line in raw]
        _fill(by_line, records, span, known)
    return [by_line[line] for line in range(span.num_lines)]


def _fill(by_line: dict[int, PartLine], records: list[ShardRecord], span: Range, ids: Sequence[str | None]) -> None:
    """Give each line without a result the reason why: its shard was closed, or its part was lost."""
    committed = 0
    reason: EndReason = "failed"
    for record in records:
        committed |= bitmaps.parse(record.done)
        reason = record.reason or reason
    for line in range(span.num_lines):
        if line not in by_line:
            failure = _STORAGE_ERROR if committed >> line & 1 else _REASONS[reason]
            by_line[line] = PartLine(line, failure.status, encode_result(ids[line], failure, ""))


def _read_part(ledger: Ledger, batch: BatchRecord, part: PartRef) -> bytes | None:
    """The part; None if it cannot be read or does not match its record: then its lines fail.

    Raises: LeaseLost where another process has ended the batch and removed its parts.
    """
    for attempt in range(PART_READS_MAX):
        if attempt:
            ledger.clock.sleep(2.0**attempt)
        found = ledger.store.get(part.key)
        if found is not None and hashlib.sha256(found.data).hexdigest() == part.sha256:
            return found.data
    now = load(ledger, keys.batch_key(batch.batch_id), BatchRecord)
    if now is None or now.record.state not in {"open", "ending"}:
        raise LeaseLost("another process has ended the batch")
    log.error("part.lost", batch_id=batch.batch_id, key=part.key, found=found is not None)
    return None


class _Requests:
    """The requests as they were submitted, read in one stream while the wanted ranges are close together.

    There are no requests once the planned bytes are gone.
    """

    def __init__(self, ledger: Ledger, batch: BatchRecord, beat: Callable[[], None]) -> None:
        self._ledger = ledger
        self._batch = batch
        self._beat = beat
        self._is_gone = False
        self._chunks: Iterator[bytes] = iter(())
        self._rest = b""  # what was read from the stream past `_at`
        self._at = -1  # the stream's position in the input; -1 before it is opened
        self._last: tuple[int, list[Line]] = (-1, [])  # the start of a range, and its lines

    def bytes_of(self, line: Line) -> Iterator[bytes]:
        """The bytes of a line over the limit, which is never held in memory."""
        return self._ledger.store.stream(self._batch.input.key, line.start, line.end, match=self._batch.input.etag)

    def of(self, span: Range) -> list[Line] | None:
        """The lines of a range; A line over the limit has no `data`. Ranges must be asked for in their order."""
        if self._last[0] == span.start:
            return self._last[1]
        if self._is_gone:
            return None
        try:
            return self._read(span)
        except (ObjectChanged, ObjectMissing) as error:
            renewed = repin(self._ledger, self._batch, self._beat)
            if renewed is not None:
                self._batch, self._at = renewed, -1
                with suppress(ObjectChanged, ObjectMissing):
                    return self._read(span)
            self._is_gone = True
            log.warning("input.changed", batch_id=self._batch.batch_id, error=str(error))
            return None

    def _read(self, span: Range) -> list[Line]:
        """Raises: ObjectChanged, ObjectMissing."""
        if not 0 <= span.start - self._at <= SKIP_BYTES_MAX or self._at < 0:
            pinned = self._batch.input
            self._chunks = self._ledger.store.stream(pinned.key, span.start, match=pinned.etag)
            self._rest, self._at = b"", span.start
        for _ in self._up_to(span.start):
            pass
        self._last = span.start, list(iter_lines(self._up_to(span.end), span.start))
        return self._last[1]

    def _up_to(self, end: int) -> Iterator[bytes]:
        """The bytes from the stream's position to `end`."""
        while self._at < end:
            chunk = self._rest or next(self._chunks, b"")
            if not chunk:
                return
            piece, self._rest = chunk[: end - self._at], chunk[end - self._at :]
            self._at += len(piece)
            yield piece
