"""The input, read once: pinned, counted, cut into ranges; what can not run is rejected here.

Rejected lines (unreadable, unroutable, a custom_id used before) get their errored results now, as parts of the
pseudo-pool `_rejected`. Memory: the plan itself, 8 bytes a line for duplicates, and one range.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from batchfile import bits, layout
from batchfile.errors import InvalidFile, InvalidRequest
from batchfile.ledger import shards
from batchfile.ledger.base import Ledger
from batchfile.lines.duplicates import DuplicateFinder
from batchfile.lines.envelope import Envelope, decode_envelope
from batchfile.lines.frame import Line, iter_lines
from batchfile.lines.part import FinishedLine
from batchfile.lines.result import encode_result
from batchfile.records import InputRef, PartRef, Plan, Range, encode
from batchfile.routing import route
from batchfile.words import LINE_BYTES_MAX, REQUESTS_MAX, Dialect, Failure, RoutingTable

RANGES_WANTED = 1000
RANGE_LINES_MIN = 32
RANGE_LINES_MAX = 4096
RANGE_BYTES_MAX = 4 * 1024 * 1024
SAMPLE_BYTES = 1024 * 1024  # the first lines of a file tell how long its lines are


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A planned input, everything but its commit stored. `rejected` counts the lines that will not run."""

    input: InputRef
    plan: Plan
    plan_key: str
    total: int
    num_rejected: int
    first_problem: str | None = None
    num_hints: int = 0


@dataclass(slots=True)
class _Span:
    """The range that is being filled."""

    start: int
    first: int
    first_row: int
    num_lines: int = 0
    pools: dict[str, int] = field(default_factory=dict)
    rejected: list[FinishedLine] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Cut:
    """A finished range with what the duplicates pass may still change."""

    range: Range
    pools: dict[str, int]
    parts: list[PartRef]
    rejected: list[FinishedLine]


def plan_input(
    ledger: Ledger,
    batch_id: str,
    input_key: str,
    *,
    routing: RoutingTable,
    stage: str | None = None,
    lines_per_range: int | None = None,
) -> Planned:
    """Plan the object `input_key`. `lines_per_range` None: what `range_lines` says.

    Raises: InvalidFile (no request in it, too many), ObjectChanged, ObjectMissing.
    """
    entry = ledger.store.head(input_key)
    if entry is None:
        raise InvalidFile(f"{input_key} does not exist; upload it first")
    planner = _Planner(ledger, batch_id, routing, stage, lines_per_range)
    digest = hashlib.sha256()
    chunks = _hashed(ledger.store.stream(input_key, match=entry.etag), digest)
    cuts = planner.read(chunks, entry.size)
    if planner.total == 0:
        raise InvalidFile("the file holds no request: every line is blank")
    suspects = planner.duplicates.suspects()
    if suspects:
        lines = iter_lines(ledger.store.stream(input_key, match=entry.etag))
        cuts = planner.reject_duplicates(cuts, lines, suspects)
    plan = planner.publish(cuts)
    plan_key = layout.plan_key(batch_id, ledger.new_id()[:12])
    ledger.store.put(plan_key, encode(plan))
    return Planned(
        input=InputRef(
            key=input_key,
            etag=entry.etag,
            size=entry.size,
            sha256=digest.hexdigest(),
            dialect=planner.dialect or "native",
        ),
        plan=plan,
        plan_key=plan_key,
        total=planner.total,
        num_rejected=planner.num_rejected,
        first_problem=planner.first_problem,
        num_hints=planner.num_hints,
    )


def range_lines(total_bytes: int, sample_lines: int, sample_bytes: int) -> int:
    """How many lines a range gets: about a thousandth of all, as far as a sample of the file tells."""
    total = total_bytes * sample_lines // max(sample_bytes, 1)
    return min(max(-(-total // RANGES_WANTED), RANGE_LINES_MIN), RANGE_LINES_MAX)


def _hashed(chunks: Iterable[bytes], digest: "hashlib._Hash") -> Iterator[bytes]:
    for chunk in chunks:
        digest.update(chunk)
        yield chunk


class _Planner:
    """One pass over the lines, and a second only where a custom_id seems to be used twice."""

    def __init__(
        self, ledger: Ledger, batch_id: str, routing: RoutingTable, stage: str | None, lines_per_range: int | None
    ) -> None:
        self.total = 0
        self.num_rejected = 0
        self.num_hints = 0
        self.first_problem: str | None = None
        self.dialect: Dialect | None = None
        self.duplicates = DuplicateFinder()
        self._ledger = ledger
        self._batch_id = batch_id
        self._routing = routing
        self._stage = stage
        self._lines_per_range = lines_per_range
        self._lease = ledger.new_id()
        self._num_parts = 0

    def read(self, chunks: Iterable[bytes], size: int) -> list[_Cut]:
        cuts: list[_Cut] = []
        span: _Span | None = None
        wanted = self._lines_per_range or RANGE_LINES_MIN
        everything = self._routing.everything
        for line in iter_lines(chunks):
            if span is None:
                span = _Span(line.start, self.total, line.row)
            pool = self._route(line, span, everything)
            if pool is not None:
                span.pools[pool] = span.pools.get(pool, 0) + 1
            span.num_lines += 1
            self.total += 1
            if line.end <= SAMPLE_BYTES and self._lines_per_range is None:
                wanted = range_lines(size, self.total, line.end)
            if span.num_lines >= wanted or line.end - span.start >= RANGE_BYTES_MAX:
                cuts.append(self._cut(span, line.end))
                span = None
            if self.total > REQUESTS_MAX:
                raise InvalidFile(f"the file holds more than {REQUESTS_MAX:,} requests; split it")
        if span is not None:
            cuts.append(self._cut(span, line.end))
        return cuts

    def _route(self, line: Line, span: _Span, everything: str | None) -> str | None:
        """The line's pool, or None where it is rejected."""
        custom_id = None
        try:
            envelope = self._envelope(line)
            custom_id = envelope.custom_id
            if self.dialect is None:
                self.dialect = envelope.dialect
            elif self.dialect != envelope.dialect:
                raise InvalidRequest(
                    f"this line is in the {envelope.dialect} format and the file began in the {self.dialect} one; "
                    "use one format in a file"
                )
            self.duplicates.add(custom_id)
            if envelope.hint is not None:
                self.num_hints += 1
            if everything is not None:
                return everything
            return route(self._routing, stage=self._stage, hint=envelope.hint, model=envelope.model)
        except InvalidRequest as error:
            known = custom_id if custom_id is not None else getattr(error, "custom_id", None)
            span.rejected.append(self._reject(span.num_lines, line.row, known, error))
            return None

    def _envelope(self, line: Line) -> Envelope:
        if line.data is None:
            raise InvalidRequest(f"the line is longer than {LINE_BYTES_MAX // 2**20} MiB; shorten the request")
        return decode_envelope(line.data)

    def _reject(self, line: int, row: int, custom_id: str | None, error: InvalidRequest) -> FinishedLine:
        message = f"line {row}: {error}"
        self.num_rejected += 1
        self.first_problem = self.first_problem or message
        failure = Failure(type=error.type, message=message)
        return FinishedLine(line, "errored", encode_result(custom_id, failure, ""))

    def _cut(self, span: _Span, end: int) -> _Cut:
        rejected = bits.of(item.line for item in span.rejected)
        made = Range(
            start=span.start,
            end=end,
            first=span.first,
            first_row=span.first_row,
            num_lines=span.num_lines,
            rejected=bits.render(rejected),
        )
        # Results leave memory with their range; what stays is enough to count them.
        stripped = [_without_result(item) for item in span.rejected]
        return _Cut(made, span.pools, self._write(span.first, span.rejected), stripped)

    def _write(self, first: int, rejected: list[FinishedLine]) -> list[PartRef]:
        if not rejected:
            return []
        self._num_parts += 1
        key = layout.part_key(self._batch_id, layout.REJECTED_POOL, first, self._lease, self._num_parts)
        return [shards.write_part(self._ledger, key, rejected)]

    def reject_duplicates(self, cuts: list[_Cut], lines: Iterator[Line], suspects: set[int]) -> list[_Cut]:
        """The second pass: the second and later uses of a custom_id are rejected."""
        first_row: dict[str, int] = {}
        return [self._reject_in(cut, lines, suspects, first_row) for cut in cuts]

    def _reject_in(self, cut: _Cut, lines: Iterator[Line], suspects: set[int], first_row: dict[str, int]) -> _Cut:
        known = bits.parse(cut.range.rejected)
        pools, twice = dict(cut.pools), list[FinishedLine]()
        for number in range(cut.range.num_lines):
            line = next(lines)
            if known >> number & 1 or line.data is None:
                continue
            envelope = decode_envelope(line.data)
            if not self.duplicates.is_suspect(envelope.custom_id, suspects):
                continue
            if envelope.custom_id not in first_row:
                first_row[envelope.custom_id] = line.row
                continue
            shown = envelope.custom_id if len(envelope.custom_id) <= 80 else envelope.custom_id[:77] + "..."
            error = InvalidRequest(
                f"custom_id: {shown!r} was used on line {first_row[envelope.custom_id]} already; make it unique"
            )
            twice.append(self._reject(number, line.row, envelope.custom_id, error))
            pool = self._routing.everything or route(
                self._routing, stage=self._stage, hint=envelope.hint, model=envelope.model
            )
            pools[pool] -= 1
        if not twice:
            return cut
        rejected = bits.render(known | bits.of(item.line for item in twice))
        return _Cut(
            replace(cut.range, rejected=rejected),
            pools,
            [*cut.parts, *self._write(cut.range.first, twice)],
            [*cut.rejected, *map(_without_result, twice)],
        )

    def publish(self, cuts: list[_Cut]) -> Plan:
        """The plan itself; the records of the rejected lines are stored on the way."""
        pools: dict[str, dict[int, int]] = {}
        for n, cut in enumerate(cuts):
            for pool, num_lines in cut.pools.items():
                if num_lines:
                    pools.setdefault(pool, {})[n] = num_lines
            if cut.rejected:
                pools.setdefault(layout.REJECTED_POOL, {})[n] = len(cut.rejected)
                shards.put_done(self._ledger, self._batch_id, layout.REJECTED_POOL, n, cut.parts, cut.rejected)
        return Plan(ranges=tuple(cut.range for cut in cuts), pools=pools)


def _without_result(item: FinishedLine) -> FinishedLine:
    return FinishedLine(item.line, item.status, b"", item.usage)
