"""Checks a file before it is submitted: what it is, what is wrong with it, and what it will take. Synchronous."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice

from batchfile.client.estimate import PoolTime, Sample, expected_output_tokens, pool_times, read_sample
from batchfile.errors import InvalidFile, InvalidRequest
from batchfile.lines.framing import iter_lines
from batchfile.lines.parse import parse_request
from batchfile.lines.validate import Scan, validate
from batchfile.rows.given_file import GivenFile
from batchfile.types import Defaults, RoutingTable

from ..ops.pools import PoolStatus
from .latest import turns_of
from .schemas import CheckReport, PoolEstimate, Turn

CHECK_BYTES_MAX = 32 * 1024 * 1024
PROBLEMS_MAX = 100


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
    found = validate(lambda: lines, scan)
    problems = list(islice(found, PROBLEMS_MAX))
    num_more = sum(1 for _ in found)
    sample = _sample(lines, table, stage)
    times = pool_times(
        sample, status.heartbeats(), {name: status.scale_of(name).pending_requests for name in sample.pools}
    )
    return report.model_copy(
        update={
            "requests": sample.num_requests,
            "bad": round(sample.num_bad),
            "num_problems": len(problems) + num_more,
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
