"""How a run is going, as numbers: from what was done before, what this process did, and the time. Pure."""

from collections import deque
from dataclasses import dataclass

from batchfile.runner.tally import Tally
from batchfile.words import Counts, Usage

RATE_WINDOW_S = 30.0  # rates are of the last so many seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """`eta_s` None: not known yet. Rates are tokens per second; `cache_hit_rate` 0 to 1."""

    total: int
    done: int
    failed: int
    input_tokens: int
    output_tokens: int
    input_rate: float
    output_rate: float
    cache_hit_rate: float
    elapsed_s: float
    eta_s: float | None
    is_loading: bool = False  # the engine is not ready yet
    down_s: float = 0.0  # for how long the endpoint has taken no work


@dataclass(frozen=True, slots=True)
class _Point:
    at: float
    tokens_in: int
    tokens_out: int


class Meter:
    """Turns a growing tally into snapshots. `now`: a monotonic clock."""

    def __init__(self, total: int, before: Counts, usage_before: Usage, started_at: float) -> None:
        self._total = total
        self._before = before
        self._usage_before = usage_before
        self._started_at = started_at
        self._points: deque[_Point] = deque([_Point(started_at, 0, 0)])

    def look(self, tally: Tally, now: float, down_s: float = 0.0) -> Snapshot:
        points = self._points
        if tally.engine_ready_at is not None and tally.engine_ready_at > points[0].at:
            points.clear()  # loading the engine is no slowness of it
            points.append(_Point(tally.engine_ready_at, 0, 0))
        points.append(_Point(now, tally.input_tokens, tally.output_tokens))
        while len(points) > 2 and now - points[0].at > RATE_WINDOW_S:
            points.popleft()
        first = points[0]
        span_s = max(now - first.at, 1e-6)
        input_rate = (tally.input_tokens - first.tokens_in) / span_s
        output_rate = (tally.output_tokens - first.tokens_out) / span_s
        done = min(self._total, self._before.finished + tally.succeeded + tally.errored)
        usage = self._usage_before + Usage(
            input_tokens=tally.input_tokens, output_tokens=tally.output_tokens, cached_tokens=tally.cached_tokens
        )
        return Snapshot(
            total=self._total,
            done=done,
            failed=self._before.finished - self._before.succeeded + tally.errored,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            input_rate=input_rate,
            output_rate=output_rate,
            cache_hit_rate=usage.cached_tokens / max(1, usage.input_tokens),
            elapsed_s=now - self._started_at,
            eta_s=_eta_s(self._total - done, tally.succeeded, tally.output_tokens, output_rate),
            is_loading=tally.engine_ready_at is None,
            down_s=down_s,
        )


def _eta_s(num_left: int, num_succeeded: int, output_tokens: int, output_rate: float) -> float | None:
    """The tokens that the rest will likely have, at the rate of now."""
    if num_left == 0:
        return 0.0
    if not num_succeeded or output_rate <= 0:
        return None
    return num_left * (output_tokens / num_succeeded) / output_rate
