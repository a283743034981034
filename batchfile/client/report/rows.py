"""Reads the results of a batch once, in bounded memory: what they add up to, and a sample of them for the report."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from batchfile.lines.failures import is_rejected
from batchfile.lines.result import NativeResult, decode_result

# Of the rows with these outcomes. Those that ended early say nothing that their number does not.
SUCCEEDED_BYTES_MAX = 8 * 1024 * 1024
FAILED_BYTES_MAX = 4 * 1024 * 1024  # and rejected
ENDED_EARLY_BYTES_MAX = 256 * 1024  # canceled, expired
TEXT_CHARS_MAX = 2_000  # of an answer or a message
NAME_CHARS_MAX = 200
MODELS_MAX = 20  # shown by name

_encoder = msgspec.json.Encoder()


class RowSample:
    """Rows that are as far apart as their size needs: every one, every second, every fourth ... of those offered."""

    def __init__(self, bytes_max: int) -> None:
        self.num_offered = 0
        self.rows: list[tuple[int, bytes]] = []  # by position among all rows
        self._bytes_max = bytes_max
        self._num_bytes = 0
        self._step = 1
        self._kept: list[int] = []  # which of those offered, in step with `rows`

    def takes_next(self) -> bool:
        """Is the next row part of the sample? Then `add` it."""
        self.num_offered += 1
        return (self.num_offered - 1) % self._step == 0

    def add(self, number: int, row: bytes) -> None:
        self.rows.append((number, row))
        self._kept.append(self.num_offered - 1)
        self._num_bytes += len(row)
        while self._num_bytes > self._bytes_max:
            self._step *= 2
            places = [place for place, nth in enumerate(self._kept) if nth % self._step == 0]
            self.rows = [self.rows[place] for place in places]
            self._kept = [self._kept[place] for place in places]
            self._num_bytes = sum(len(row) for _, row in self.rows)


class TokenCounts:
    """How many requests had how many tokens, to three significant digits: a few thousand numbers at most."""

    def __init__(self) -> None:
        self.num: Counter[int] = Counter()

    def add(self, tokens: int) -> None:
        unit = 10 ** max(0, len(str(tokens)) - 3)
        self.num[tokens // unit * unit] += 1

    def quantile(self, share: float) -> int:
        left = share * self.num.total()
        for tokens in sorted(self.num):
            left -= self.num[tokens]
            if left <= 0:
                return tokens
        return 0


@dataclass(slots=True)
class Gathered:
    """What one pass over the results finds."""

    num: int = 0
    models: Counter[str] = field(default_factory=Counter)
    stop_reasons: Counter[str] = field(default_factory=Counter)
    input_tokens: TokenCounts = field(default_factory=TokenCounts)
    output_tokens: TokenCounts = field(default_factory=TokenCounts)
    succeeded: RowSample = field(default_factory=lambda: RowSample(SUCCEEDED_BYTES_MAX))
    failed: RowSample = field(default_factory=lambda: RowSample(FAILED_BYTES_MAX))
    ended_early: RowSample = field(default_factory=lambda: RowSample(ENDED_EARLY_BYTES_MAX))

    @property
    def rows(self) -> list[bytes]:
        """Those of all samples, in the order of the results."""
        return [row for _, row in sorted(self.succeeded.rows + self.failed.rows + self.ended_early.rows)]

    def sample_of(self, status: str) -> RowSample:
        return {"succeeded": self.succeeded, "errored": self.failed}.get(status, self.ended_early)


def gather(lines: Iterable[bytes]) -> Gathered:
    """`lines`: native result lines."""
    found = Gathered()
    for line in lines:
        found.num += 1
        result = decode_result(line)
        if result.usage is not None:
            found.input_tokens.add(result.usage.input_tokens)
            found.output_tokens.add(result.usage.output_tokens)
        if result.model and (result.model in found.models or len(found.models) < MODELS_MAX):
            found.models[result.model] += 1
        if result.stop_reason:
            found.stop_reasons[result.stop_reason] += 1
        sample = found.sample_of(result.status)
        if sample.takes_next():
            sample.add(found.num, _row(found.num, result))
    return found


def _row(number: int, result: NativeResult) -> bytes:
    """For the page's script: safe inside a script element, because it has no `<`."""
    usage, text = result.usage, _text(result)
    what = result.stop_reason if result.error is None else result.error.type
    row = [
        number,
        (result.custom_id or "")[:NAME_CHARS_MAX],
        _outcome(result),
        (what or "")[:NAME_CHARS_MAX],
        None if usage is None else usage.input_tokens,
        None if usage is None else usage.output_tokens,
        None if usage is None else usage.cached_tokens,
        text[:TEXT_CHARS_MAX],
        max(0, len(text) - TEXT_CHARS_MAX),
    ]
    return _encoder.encode(row).replace(b"<", b"\\u003c")


def _outcome(result: NativeResult) -> str:
    if result.status != "errored" or result.error is None:
        return result.status
    return "rejected" if is_rejected(result.error.type) else "failed"


def _text(result: NativeResult) -> str:
    if result.error is not None:
        return result.error.message
    if result.message is None:
        return " ".join(label for label in result.labels or () if label)
    blocks = result.message.content
    calls = [f"{block.name}({_encoder.encode(block.input).decode()})" for block in blocks if block.type == "tool_use"]
    return "\n".join([block.text for block in blocks if block.type == "text"] + calls)
