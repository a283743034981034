"""Cuts an input into ranges in one pass over its lines, and sorts out what can not run.

The pass and the one that looks for duplicates. Memory: 8 bytes a line for duplicates, one range, and what it has cut.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from batchfile.errors import InvalidRequest, RequestRefused, TooLarge
from batchfile.ledger import bitmaps, keys, shards
from batchfile.ledger.base import Ledger
from batchfile.ledger.batches import Planned
from batchfile.ledger.inputs import CustomIdsWriter
from batchfile.ledger.parallel import in_order
from batchfile.ledger.records import InputRef, PartRef, Plan, Range, encode
from batchfile.lines.diagnostics import short
from batchfile.lines.envelope import Envelope, custom_id_of, decode_envelope
from batchfile.lines.framing import Line, iter_lines
from batchfile.lines.result import FinishedLine, encode_result
from batchfile.lines.validate import DuplicateFinder
from batchfile.plan.line_problems import LineProblems
from batchfile.routing import route
from batchfile.types import LINE_BYTES_MAX, REQUESTS_MAX, Failure, InputFormat, RoutingTable

RANGES_WANTED = 1000
RANGE_LINES_MIN = 32
RANGE_LINES_MAX = 4096
RANGE_BYTES_MAX = 4 * 1024 * 1024
SAMPLE_BYTES = 1024 * 1024  # the first lines of a file tell how long its lines are

_LEADING_PATH = re.compile(r"[^\s:]+: ")

Place = Callable[[int, int], str]  # where a user finds a request: by its number from 0, or by its line from 1


def by_line(number: int, row: int) -> str:
    return f"line {row}"


def by_number(number: int, row: int) -> str:
    return f"requests[{number}]"


def located(place: str, message: str) -> str:
    """`line 4: custom_id: ...`, `requests[3].custom_id: ...`, `requests[3]: is not valid JSON ...`."""
    return f"{place}{'.' if place[-1] == ']' and _LEADING_PATH.match(message) else ': '}{message}"


@dataclass(slots=True)
class _Span:
    """The range that is being filled."""

    start: int
    first: int
    first_row: int
    num_lines: int = 0
    pools: dict[str, int] = field(default_factory=dict)
    rejected: list[FinishedLine] = field(default_factory=list)
    ids: list[str | None] = field(default_factory=list)  # where they are kept


@dataclass(frozen=True, slots=True)
class Cut:
    """A finished range with what the duplicates pass may still change."""

    range: Range
    pools: dict[str, int]
    parts: list[PartRef]
    rejected: list[FinishedLine]


def range_lines(total_bytes: int, sample_lines: int, sample_bytes: int) -> int:
    """How many lines a range gets: about a thousandth of all, as far as a sample of the file tells."""
    total = total_bytes * sample_lines // max(sample_bytes, 1)
    return min(max(-(-total // RANGES_WANTED), RANGE_LINES_MIN), RANGE_LINES_MAX)


class Cutter:
    """One pass over the lines, and a second only where a custom_id seems to be used twice.

    `refuse_at` None: lines that can not run are rejected, one by one. Else the first whose envelope is wrong raises
    RequestRefused. With `problems` they are noted there instead, and the plan is of no use. `beat` is called with each
    object that is written. `ids`: takes the custom_id of each line.
    """

    def __init__(
        self,
        ledger: Ledger,
        batch_id: str,
        routing: RoutingTable,
        stage: str | None,
        *,
        lines_per_range: int | None = None,
        refuse_at: Place | None = None,
        requests_max: int = REQUESTS_MAX,
        custom_ids: re.Pattern[str] | None = None,
        problems: LineProblems | None = None,
        beat: Callable[[], None] = lambda: None,
        ids: CustomIdsWriter | None = None,
    ) -> None:
        self.total = 0
        self.num_rejected = 0
        self.num_hints = 0
        self.first_problem: str | None = None
        self.format: InputFormat | None = None
        self.duplicates = DuplicateFinder()
        self._ledger = ledger
        self._batch_id = batch_id
        self._routing = routing
        self._stage = stage
        self._lines_per_range = lines_per_range
        self._refuse_at = refuse_at
        self._place = refuse_at or by_line
        self._requests_max = requests_max
        self._custom_ids = custom_ids
        self._problems = problems
        self._beat = beat
        self._ids = ids
        self._pools: dict[str | None, str] = {}  # where a hint leads, for this stage
        self._lease = ledger.new_id()
        self._num_parts = 0

    def read(self, chunks: Iterable[bytes], size: int) -> list[Cut]:
        cuts: list[Cut] = []
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
            if self.total > self._requests_max:
                raise TooLarge(f"there are more than {self._requests_max:,} requests; send them in several batches")
        if span is not None:
            cuts.append(self._cut(span, line.end))
        return cuts

    def _route(self, line: Line, span: _Span, everything: str | None) -> str | None:
        """The line's pool, or None where it is rejected."""
        custom_id = None
        is_inside = False  # what is wrong inside params refuses nothing
        try:
            if line.data is None:
                custom_id = custom_id_of(line.head)
                raise InvalidRequest(f"the line is longer than {LINE_BYTES_MAX // 2**20} MiB; shorten the request")
            envelope = decode_envelope(line.data, "native" if self._problems is None else "openai")
            custom_id, hint = envelope.custom_id, envelope.hint
            if envelope.format != self.format:
                self._check_format(envelope.format)
            if self._custom_ids is not None and not self._custom_ids.fullmatch(custom_id):
                raise InvalidRequest(f"custom_id: {short(custom_id)!r} does not match {self._custom_ids.pattern}")
            self.duplicates.add(custom_id)
            if self._problems is not None:
                self._problems.check(envelope)
            if hint is not None:
                self.num_hints += 1
            is_inside = hint is None and self._stage is None
            pool = everything or self._pools.get(hint) or self._pool_of(envelope)
            if self._ids is not None:
                span.ids.append(custom_id)
            return pool
        except InvalidRequest as error:
            if self._problems is not None:
                self._problems.note(line.row, error)
                return None
            known = custom_id if custom_id is not None else getattr(error, "custom_id", None)
            if self._refuse_at is not None and not is_inside:
                raise self._refusal(self.total, line.row, error) from None
            span.rejected.append(self._reject(span.num_lines, line.row, known, error))
            if self._ids is not None:
                span.ids.append(known)
            return None

    def _check_format(self, found: InputFormat) -> None:
        """The first line says which it is."""
        if self._refuse_at is not None and found != "native":
            raise InvalidRequest("params: is missing; put messages and max_tokens there (body is another format)")
        if self.format is not None:
            raise InvalidRequest(
                f"this line is in the {found} format and the file began in the {self.format} one; "
                "use one format in a file"
            )
        self.format = found

    def pool_of(self, envelope: Envelope) -> str:
        """Raises: InvalidRequest where it leads nowhere."""
        return self._routing.everything or self._pool_of(envelope)

    def _pool_of(self, envelope: Envelope) -> str:
        hint = envelope.hint
        if self._stage is None and hint is None:
            return route(self._routing, stage=None, hint=None, model=envelope.model)
        pool = self._pools[hint] = route(self._routing, stage=self._stage, hint=hint, model=None)
        return pool

    def _refusal(self, number: int, row: int, error: InvalidRequest) -> RequestRefused:
        return RequestRefused(located(self._place(number, row), str(error)), number)

    def _reject(self, line: int, row: int, custom_id: str | None, error: InvalidRequest) -> FinishedLine:
        message = located(by_line(0, row), str(error))
        self.num_rejected += 1
        self.first_problem = self.first_problem or message
        # Who posted requests has no lines, and each of these has its custom_id.
        known_by = row if custom_id is None else None
        failure = Failure(type=error.type, message=message if self._refuse_at is None else str(error))
        return FinishedLine(line, "errored", encode_result(custom_id, failure, "", line=known_by))

    def _cut(self, span: _Span, end: int) -> Cut:
        if self._ids is not None:
            self._ids.write(span.ids)
        rejected = bitmaps.of(item.line for item in span.rejected)
        made = Range(
            start=span.start,
            end=end,
            first=span.first,
            first_row=span.first_row,
            num_lines=span.num_lines,
            rejected=bitmaps.render(rejected),
        )
        # Results leave memory with their range; what stays is enough to count them.
        stripped = [_without_result(item) for item in span.rejected]
        return Cut(made, span.pools, self._write(span.first, span.rejected), stripped)

    def _write(self, first: int, rejected: list[FinishedLine]) -> list[PartRef]:
        if not rejected:
            return []
        self._beat()
        self._num_parts += 1
        key = keys.part_key(self._batch_id, keys.REJECTED_POOL, first, self._lease, self._num_parts)
        return [shards.write_part(self._ledger, key, rejected)]

    def without_duplicates(self, cuts: list[Cut], chunks: Iterable[bytes]) -> list[Cut]:
        """The second pass, over the same bytes, if need be: the second and later uses of a custom_id are rejected."""
        suspects = self.duplicates.suspects()
        if not suspects:
            return cuts
        lines = iter_lines(chunks)
        first_place: dict[str, str] = {}
        return [self._reject_in(cut, lines, suspects, first_place) for cut in cuts]

    def _reject_in(self, cut: Cut, lines: Iterator[Line], suspects: set[int], first_place: dict[str, str]) -> Cut:
        known = bitmaps.parse(cut.range.rejected)
        pools, twice = dict(cut.pools), list[FinishedLine]()
        for place_in_range in range(cut.range.num_lines):
            line = next(lines)
            is_rejected = known >> place_in_range & 1 and self._refuse_at is None
            if is_rejected or line.data is None:
                continue
            envelope = decode_envelope(line.data)
            if not self.duplicates.is_suspect(envelope.custom_id, suspects):
                continue
            number = cut.range.first + place_in_range
            if envelope.custom_id not in first_place:
                first_place[envelope.custom_id] = self._place(number, line.row)
                continue
            first = first_place[envelope.custom_id]
            by = "by" if first[-1] == "]" else "on"
            error = InvalidRequest(f"custom_id: {short(envelope.custom_id)!r} was used {by} {first}; make it unique")
            if self._problems is not None:
                self._problems.note(line.row, error)
                continue
            if self._refuse_at is not None:
                raise self._refusal(number, line.row, error)
            twice.append(self._reject(place_in_range, line.row, envelope.custom_id, error))
            pools[self.pool_of(envelope)] -= 1
        if not twice:
            return cut
        rejected = bitmaps.render(known | bitmaps.of(item.line for item in twice))
        return Cut(
            replace(cut.range, rejected=rejected),
            pools,
            [*cut.parts, *self._write(cut.range.first, twice)],
            [*cut.rejected, *map(_without_result, twice)],
        )

    def publish(self, cuts: list[Cut], pinned: InputRef) -> Planned:
        """Store the plan, the ids where they are kept, and the records of the rejected lines."""
        pools: dict[str, dict[int, int]] = {}
        for n, cut in enumerate(cuts):
            for pool, num_lines in cut.pools.items():
                if num_lines:
                    pools.setdefault(pool, {})[n] = num_lines
            if cut.rejected:
                pools.setdefault(keys.REJECTED_POOL, {})[n] = len(cut.rejected)
        for _ in in_order(self._ledger, lambda n: self._put_done(n, cuts[n]), pools.get(keys.REJECTED_POOL, {})):
            self._beat()
        ids = None if self._ids is None else self._ids.commit()
        plan = Plan(ranges=tuple(cut.range for cut in cuts), pools=pools, ids=ids)
        plan_key = keys.plan_key(self._batch_id, self._ledger.new_id()[:12])
        self._ledger.store.put(plan_key, encode(plan))
        return Planned(
            input=pinned,
            plan=plan,
            plan_key=plan_key,
            total=self.total,
            num_rejected=self.num_rejected,
            first_problem=self.first_problem,
            num_hints=self.num_hints,
            num_reused=sum(pools.get(keys.REUSED_POOL, {}).values()),
        )

    def _put_done(self, n: int, cut: Cut) -> None:
        shards.put_done(self._ledger, self._batch_id, keys.REJECTED_POOL, n, cut.parts, cut.rejected)


def _without_result(item: FinishedLine) -> FinishedLine:
    return FinishedLine(item.line, item.status, b"", item.usage)
