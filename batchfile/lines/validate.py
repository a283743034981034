"""Validates a file without running it: all problems of all lines, and a summary.

The same functions as in a run read each line, so the same lines are rejected. In addition, a repeated key is reported
at any depth, while a run checks only the top level of a line, of `params` and of `body`.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from statistics import median_low
from typing import Any, NamedTuple

from batchfile.errors import InvalidRequest
from batchfile.lines.diagnostics import Diagnostic, locate, short
from batchfile.lines.envelope import Envelope, Unreadable, custom_id_of, decode_envelope
from batchfile.lines.formats import (
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_responses,
    openai_scores,
)
from batchfile.lines.formats.bodies import Carried
from batchfile.lines.formats.shared import TextBlock
from batchfile.lines.framing import NO_REQUEST, NUL_TAIL, Line, iter_lines
from batchfile.lines.json_scan import find_any_repeats, repeats
from batchfile.lines.parse import find_problems, kind_of, read_carried
from batchfile.routing import check_endpoint, route
from batchfile.types import LINE_BYTES_MAX, REQUESTS_MAX, Defaults, Input, InputFormat, Kind, RoutingTable


@dataclass(slots=True, kw_only=True)
class Summary:
    """Grows line by line. `num_requests` counts every line that is not blank, valid or not.

    The rest is about valid requests. `prompt_chars` counts characters of text; `hints`, `models` and `max_tokens` count
    requests by their `model_hint`, their model and their limit on output tokens.
    """

    format: InputFormat | None = None
    num_requests: int = 0
    num_bad: int = 0
    num_problems: int = 0
    size_bytes: int = 0
    prompt_chars: int = 0
    hints: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    max_tokens: Counter[int] = field(default_factory=Counter)

    @property
    def max_tokens_median(self) -> int | None:
        """The lower of two middle values; None without a valid request."""
        return median_low(self.max_tokens.elements()) if self.max_tokens else None


_BUCKETS = 256  # one at a time becomes a set, which keeps peak memory low


class DuplicateFinder:
    """For use within one process: Python's string hashes differ between processes."""

    def __init__(self) -> None:
        self._buckets = [array("q") for _ in range(_BUCKETS)]

    def add(self, custom_id: str) -> None:
        value = hash(custom_id)
        self._buckets[value % _BUCKETS].append(value)

    def merge(self, other: "DuplicateFinder") -> None:
        """Add the hashes from a fork of this process, which has the same hash seed."""
        for mine, theirs in zip(self._buckets, other._buckets, strict=True):
            mine.extend(theirs)

    def suspects(self) -> set[int]:
        """Hashes that were added twice: duplicates, or (rarely) two ids with one hash."""
        found: set[int] = set()
        for bucket in self._buckets:
            if len(set(bucket)) != len(bucket):
                found.update(value for value, num in Counter(bucket).items() if num > 1)
        return found

    @staticmethod
    def is_suspect(custom_id: str, suspects: set[int]) -> bool:
        return hash(custom_id) in suspects


@dataclass(frozen=True, slots=True, kw_only=True)
class LineProblem:
    """`line` of the file, from 1; `column` in characters, from 1, or None for the line or file as a whole."""

    line: int
    column: int | None
    custom_id: str | None
    where: str
    message: str
    fix: str


class Scan:
    """One pass over a file: yields its problems, fills the summary and collects the hashes of all custom_ids.

    Without a `table`, routing is not checked. `summary` and `duplicates` are complete when `problems` is exhausted.
    """

    def __init__(
        self,
        *,
        table: RoutingTable | None = None,
        stage: str | None = None,
        defaults: Defaults | None = None,
    ) -> None:
        self.summary = Summary()
        self.duplicates = DuplicateFinder()
        self._table = table
        self._stage = stage
        self._max_tokens = (defaults or Defaults()).max_tokens
        # By hint, model and kind: why they are rejected, or None.
        self._routes: dict[tuple[str | None, str | None, Kind | None], str | None] = {}

    def problems(self, chunks: Iterable[bytes], start: int = 0) -> Iterator[LineProblem]:
        """Ordered by line and column. `start`: the offset of the chunks in the file."""
        summary = self.summary
        line: Line | None = None
        for line in iter_lines(chunks, start):
            summary.num_requests += 1
            diagnostics = self._check(line)
            diagnostics += _repeats_inside(line.data, diagnostics)
            if diagnostics:
                summary.num_bad += 1
                summary.num_problems += len(diagnostics)
                yield from _problems(line, diagnostics)
        if line is not None:
            summary.size_bytes = line.end

    def _check(self, line: Line) -> list[Diagnostic]:
        if line.data is None:
            return [Diagnostic((), f"is longer than {LINE_BYTES_MAX // 2**20} MiB", "Shorten the request.")]
        try:
            envelope = decode_envelope(line.data)
        except Unreadable:
            return find_problems(line.data)
        diagnostics = self._check_outside(envelope)
        self.duplicates.add(envelope.custom_id)
        try:
            carried = read_carried(envelope)
        except InvalidRequest:
            return diagnostics + find_problems(envelope) + self._check_route(envelope, envelope.model)
        if self._table is not None:
            diagnostics += self._check_route(envelope, carried.model)
        self._count(envelope, carried)
        return diagnostics

    def _check_outside(self, envelope: Envelope) -> list[Diagnostic]:
        first = self.summary.format
        if first == envelope.format:
            return []
        if first is None:
            self.summary.format = envelope.format
            return []
        message = f"is in the {envelope.format} format, but the file starts in the {first} format"
        return [Diagnostic((), message, "Use one format per file.")]

    def _check_route(self, envelope: Envelope, model: str | None) -> list[Diagnostic]:
        if self._table is None:
            return []
        hint, kind = envelope.hint, kind_of(envelope)
        key = (hint, model, kind)
        if key not in self._routes:
            try:
                pool = route(self._table, stage=self._stage, hint=hint, model=model)
                check_endpoint(self._table, pool, kind)
                self._routes[key] = None
            except InvalidRequest as error:
                self._routes[key] = str(error)
        refusal = self._routes[key]
        return [] if refusal is None else [Diagnostic((), refusal, "Name one that exists.")]

    def _count(self, envelope: Envelope, carried: Carried) -> None:
        asks, summary = _asks(carried, self._max_tokens), self.summary
        summary.prompt_chars += asks.prompt_chars
        summary.max_tokens[asks.max_tokens] += 1
        if envelope.hint is not None:
            summary.hints[envelope.hint] += 1
        if carried.model is not None:
            summary.models[carried.model] += 1


def _repeats_inside(data: bytes | None, diagnostics: list[Diagnostic]) -> list[Diagnostic]:
    known = {diagnostic.path for diagnostic in diagnostics}
    return repeats([path for path in find_any_repeats(data or b"") if path not in known])


def validate(read: Callable[[], Iterable[bytes]], scan: Scan) -> Iterator[LineProblem]:
    """All problems of a file. `read` opens it once, and a second time only if a custom_id seems to be repeated.

    Repeated custom_ids come last. `scan.summary` is complete when this is exhausted.
    """
    last = b""

    def chunks() -> Iterator[bytes]:
        nonlocal last
        for chunk in read():
            last = chunk or last
            yield chunk

    yield from scan.problems(chunks())
    summary = scan.summary
    if last.endswith(b"\0"):
        summary.num_problems += 1
        yield nul_tail()
    for problem in _late(read, scan):
        summary.num_problems += 1
        yield problem


def _late(read: Callable[[], Iterable[bytes]], scan: Scan) -> Iterator[LineProblem]:
    """Problems that show only in the whole file."""
    if scan.summary.num_requests == 0:
        yield _of_file(NO_REQUEST, "Write one request on each line.")
    if scan.summary.num_requests > REQUESTS_MAX:
        yield _of_file(f"contains more than {REQUESTS_MAX:,} requests", "Split the file.")
    suspects = scan.duplicates.suspects()
    if suspects:
        yield from repeated(read(), suspects)


def repeated(chunks: Iterable[bytes], suspects: set[int]) -> Iterator[LineProblem]:
    """The second and later uses of a custom_id, with the line of the first. Memory: the repeated ids."""
    first: dict[str, int] = {}
    for line in iter_lines(chunks):
        if line.data is None:
            continue
        try:
            custom_id = decode_envelope(line.data).custom_id
        except InvalidRequest:
            continue
        if not DuplicateFinder.is_suspect(custom_id, suspects):
            continue
        if custom_id not in first:
            first[custom_id] = line.row
            continue
        message = f'"{short(custom_id)}" is already used on line {first[custom_id]}'
        diagnostic = Diagnostic(
            ("custom_id",), message, f"Make it unique: lines {first[custom_id]} and {line.row} share it."
        )
        yield from _problems(line, [diagnostic])


def _problems(line: Line, diagnostics: list[Diagnostic]) -> list[LineProblem]:
    data = line.data or b""
    text = data.decode("utf-8", "replace")
    custom_id = custom_id_of(data or line.head)
    made = [
        LineProblem(
            line=line.row,
            column=_column(text, diagnostic),
            custom_id=custom_id,
            where=diagnostic.where,
            message=diagnostic.message,
            fix=diagnostic.fix,
        )
        for diagnostic in diagnostics
    ]
    return sorted(made, key=lambda problem: problem.column or 0)


def _column(text: str, diagnostic: Diagnostic) -> int | None:
    """The column of the value, of the key if the key is wrong, or of the object that lacks a missing key."""
    if diagnostic.column is not None or not diagnostic.path:
        return diagnostic.column
    path = diagnostic.path
    for size in range(len(path), 0, -1):
        column = locate(text, path[:size], at_key=diagnostic.at_key)
        if column is not None:
            return column
    return 1 if text else None


def nul_tail() -> LineProblem:
    return _of_file(NUL_TAIL, "Check that the file is complete.")


def _of_file(message: str, fix: str) -> LineProblem:
    return LineProblem(line=1, column=None, custom_id=None, where="", message=message, fix=fix)


class _Asks(NamedTuple):
    prompt_chars: int
    max_tokens: int


def _asks(carried: Carried, max_tokens_else: int) -> _Asks:
    if isinstance(carried, openai_completions.PlainBody):
        limit = openai_completions.MAX_TOKENS if carried.max_tokens is None else carried.max_tokens
        return _Asks(_num_input_chars([carried.prompt]), limit)
    if isinstance(carried, openai_embeddings.Inputs):
        return _Asks(_num_input_chars(carried.input), 0)
    if isinstance(carried, openai_scores.PlainBody | openai_scores.PlainRerankBody):
        inputs = (carried.pair or ((), ())) if isinstance(carried, openai_scores.PlainBody) else (carried.documents,)
        return _Asks(sum(_num_input_chars([one] if isinstance(one, str) else one) for one in inputs), 0)
    if isinstance(carried, openai_responses.Body):
        carried = carried.chat
    max_tokens = carried.max_tokens
    if isinstance(carried, openai_chat.PlainBody):
        num_chars = 0
        max_tokens = max_tokens if carried.max_completion_tokens is None else carried.max_completion_tokens
    else:
        num_chars = _num_chars(carried.system)
    for turn in carried.messages:
        num_chars += _num_chars(turn.content)
    return _Asks(num_chars, max_tokens_else if max_tokens is None else max_tokens)


def _num_input_chars(inputs: Iterable[Input]) -> int:
    return sum([len(one) for one in inputs if isinstance(one, str)])


def _num_chars(content: str | list[Any] | None) -> int:
    if content is None or isinstance(content, str):
        return len(content or "")
    return sum([len(block.text) for block in content if isinstance(block, TextBlock)])
