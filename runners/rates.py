"""Rates while there was work in the last minute, from a runner's stats, which only grow. Pure."""

from collections import deque
from dataclasses import dataclass

from batchfile.runner.stats import RunnerStats

WINDOW_S = 60.0
# Less than either of these pairs, within the window, is no measurement: requests answered, seconds with work.
ENOUGH = ((10, 1.0), (3, 30.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Per second with requests in flight; 0: too little was measured. Requests: those that the engine answered, well
    or not.
    """

    requests: float = 0.0
    input_tokens: float = 0.0
    output_tokens: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Point:
    at: float
    busy_s: float
    requests: int
    input_tokens: int
    output_tokens: int


class RateMeter:
    """Look at the same stats about once a second; `now` is a monotonic clock."""

    def __init__(self) -> None:
        self._points: deque[_Point] = deque()

    def look(self, runner_stats: RunnerStats, now: float) -> Rates:
        points = self._points
        last = _Point(
            at=now,
            busy_s=runner_stats.busy_s,
            requests=runner_stats.succeeded + runner_stats.failed,
            input_tokens=runner_stats.input_tokens,
            output_tokens=runner_stats.output_tokens,
        )
        points.append(last)
        while now - points[0].at > WINDOW_S:
            points.popleft()
        first = points[0]
        span_s = last.busy_s - first.busy_s
        num = last.requests - first.requests
        if not any(num >= num_min and span_s >= busy_s_min for num_min, busy_s_min in ENOUGH):
            return Rates()
        return Rates(
            requests=num / span_s,
            input_tokens=(last.input_tokens - first.input_tokens) / span_s,
            output_tokens=(last.output_tokens - first.output_tokens) / span_s,
        )
