"""Checks a file before it is submitted: what it is, what is wrong with it, and what it will cost. Synchronous.

Templates of callers are rendered here, so they may insert columns and nothing else: a loop or a product could use any
amount of time and memory.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from batchfile.client.estimate import PoolTime, Sample, expected_output_tokens, pool_times, read_sample
from batchfile.errors import InvalidFile, InvalidRequest, SettingsError, TooLarge
from batchfile.lines.framing import iter_lines
from batchfile.lines.kinds import KIND_BYTES, FileKind, detect, refusal
from batchfile.lines.parse import parse_request
from batchfile.lines.split_document import elements
from batchfile.lines.validate import Scan, validate
from batchfile.rows.prompt import RowPrompt, request_lines
from batchfile.rows.read import read_rows
from batchfile.types import Defaults, RoutingTable

from ..http.spool import Spooled
from ..ops.pools import PoolStatus
from .latest import turns_of
from .schemas import CheckReport, PoolEstimate, Turn

CHECK_BYTES_MAX = 32 * 1024 * 1024
ROWS_BYTES_MAX = 8 * 1024 * 1024
PROMPT_CHARS_MAX = 20_000
SLOTS_MAX = 16
PROBLEMS_MAX = 100
CHUNK_BYTES = 256 * 1024
_SLOT = re.compile(r'\{\{\s*(?:[^\W\d]\w*|row\["[^"\\\n{}]*"\])\s*\}\}')


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenFile:
    """A file as it was dropped, and how its rows become requests. `prompt`: a template over the columns."""

    name: str
    data: memoryview
    kind: FileKind
    prompt: str | None

    @classmethod
    def of(cls, spooled: Spooled, name: str, prompt: str | None) -> "GivenFile":
        data = spooled.view()
        return cls(name=name, data=data, kind=detect(name, bytes(data[:KIND_BYTES])), prompt=prompt or None)

    @property
    def advice(self) -> str | None:
        """Why it cannot be submitted as it is; None: it can."""
        if self.kind.is_ready or (self.kind.content == "rows" and (self.prompt or self.kind.has_prompts)):
            return None
        if self.kind.content == "rows":
            return f"{self.name}: is {self.kind.described}; write a prompt over its columns"
        return refusal(self.kind, self.name)

    def lines(self) -> Iterator[bytes]:
        """Its requests as JSON Lines, in chunks. Raises: InvalidFile, also RequestRefused and TooLarge."""
        if self.advice is not None:
            raise InvalidFile(self.advice)
        if self.kind.content != "rows":
            return elements(self._chunks(), self.name) if self.kind.is_array else self._chunks()
        if len(self.data) > ROWS_BYTES_MAX:
            limit = ROWS_BYTES_MAX // 2**20
            raise TooLarge(f"{self.name}: rows are converted here up to {limit} MiB; use `batchfile submit` for more")
        chunks = elements(self._chunks(), self.name) if self.kind.is_array else self._chunks()
        try:
            prompt = RowPrompt(prompt=_checked(self.prompt), is_command=False)
        except SettingsError as error:
            raise InvalidFile(str(error)) from None
        prompt.check(self.name, self.kind.columns)
        return request_lines(read_rows(chunks, self.kind, self.name), prompt)

    def _chunks(self) -> Iterator[bytes]:
        return (bytes(self.data[at : at + CHUNK_BYTES]) for at in range(0, len(self.data), CHUNK_BYTES))


def check(
    file: GivenFile, routing: RoutingTable, stage: str | None, pool: str | None, status: PoolStatus
) -> CheckReport:
    """Raises: InvalidFile, StoreUnavailable."""
    kind = file.kind
    report = CheckReport(
        kind=kind.described,
        content=kind.content,
        layout=kind.layout,
        columns=list(kind.columns)[:200] if kind.content == "rows" else [],
        needs_prompt=kind.content == "rows" and not kind.has_prompts,
        advice=file.advice,
        size_bytes=len(file.data),
    )
    if report.advice is not None:
        return report
    lines = list(file.lines())
    table = replace(routing, everything=pool) if pool else routing
    scan = Scan(table=table, stage=stage)
    problems = list(islice(validate(lambda: lines, scan), PROBLEMS_MAX))
    sample = _sample(lines, table, stage)
    times = pool_times(
        sample, status.heartbeats(), {name: status.scale_of(name).pending_requests for name in sample.pools}
    )
    return report.model_copy(
        update={
            "requests": sample.num_requests,
            "bad": round(sample.num_bad),
            "num_problems": max(len(problems), scan.summary.num_problems),
            "problems": [replace(one, column=None) if kind.content == "rows" else one for one in problems],
            "first_prompt": _first_prompt(lines),
            "unrouted": round(sample.num_unrouted),
            "input_tokens": round(sample.input_tokens),
            "max_output_tokens": round(sample.max_output_tokens),
            "expected_output_tokens": expected_output_tokens(sample, times),
            "pools": [_estimate(time) for time in times],
        }
    )


def _estimate(time: PoolTime) -> PoolEstimate:
    return PoolEstimate(
        pool=time.pool,
        requests=time.num_requests,
        runners=time.num_runners,
        waiting=time.waiting,
        requests_per_s=time.requests_per_s,
        busy_s=time.busy_s,
        until_s=time.until_s,
    )


def _sample(lines: Iterable[bytes], table: RoutingTable, stage: str | None) -> Sample:
    try:
        return read_sample(lines, routing=table, stage=stage, count=None)
    except InvalidFile:  # it has no requests, which is among the problems
        return Sample()


def _first_prompt(lines: Iterable[bytes]) -> list[Turn]:
    for line in islice(iter_lines(lines), PROBLEMS_MAX):
        try:
            return turns_of(parse_request(line.data or b"", Defaults()))
        except InvalidRequest:
            continue
    return []


def _checked(prompt: str | None) -> str | None:
    """Raises: InvalidFile if the template does more than insert columns."""
    if prompt is None:
        return None
    pieces = _SLOT.split(prompt)
    if len(prompt) > PROMPT_CHARS_MAX or len(pieces) - 1 > SLOTS_MAX:
        raise InvalidFile(f"prompt: use at most {PROMPT_CHARS_MAX:,} characters and {SLOTS_MAX} columns here")
    if any(re.search(r"\{[{%#]|\{$", piece) for piece in pieces):
        raise InvalidFile(
            'prompt: here it can only insert columns, as {{ column }} or {{ row["a column"] }}; `batchfile submit` '
            "takes all of Jinja2"
        )
    return prompt
