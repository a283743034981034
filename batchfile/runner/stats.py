"""What a runner has done since its start, for progress, receipts and metrics: counts, durations, engine time."""

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from math import ceil

REQUEST_BOUNDS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0)
CHECKPOINT_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0)
LAST = 1_000  # values for the quantiles


class Histogram:
    """Durations: counts per bucket since the start, and quantiles of the last few. One thread adds.

    `bounds` are the inclusive upper bounds of the buckets; one more bucket takes what is longer.
    """

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self._last: deque[float] = deque(maxlen=LAST)

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value
        self._last.append(value)

    def quantile(self, share: float) -> float | None:
        """The smallest of the last 1,000 values that at least `share` of them do not exceed; None without values."""
        values = sorted(self._last)
        return values[max(0, ceil(share * len(values)) - 1)] if values else None


@dataclass(slots=True)
class RunnerStats:
    """Requests and tokens of this process; reads from other threads may be a moment old. Each count has one writer."""

    succeeded: int = 0
    failed: int = 0  # without a valid answer; counted under the lock
    rejected: int = 0  # invalid requests, most of which never reached the engine; counted under the lock
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    usage_unknown: int = 0  # answers whose endpoint did not report tokens
    gpu_s: float = 0.0  # GPU time of the engine's steps; 0 without GPUs
    busy_s: float = 0.0  # time with requests in flight, up to the last step
    num_engine_deaths: int = 0
    num_leases_lost: int = 0
    num_steps: int = 0
    num_full_steps: int = 0
    prompt_tokens_computed: int = 0  # by replaced engines, including requests that did not finish
    output_tokens_generated: int = 0  # the same
    first_dispatch_at: float | None = None
    engine_ready_at: float | None = None
    request_s: Histogram = field(default_factory=lambda: Histogram(REQUEST_BOUNDS_S))  # completions, from add to finish
    checkpoint_s: Histogram = field(default_factory=lambda: Histogram(CHECKPOINT_BOUNDS_S))

    @property
    def errored(self) -> int:
        return self.failed + self.rejected


@dataclass(slots=True)
class StepTimes:
    """The time of the engine's steps. For the loop's thread.

    `ended_at`: monotonic, of the last step; None if nothing has been in flight since. `gpu_s_each`: GPU seconds, shared
    by the requests in flight at each step and summed over all steps: a request costs as much as it grew meanwhile.
    """

    stats: RunnerStats
    ended_at: float | None = None
    gpu_s_each: float = 0.0

    def add(self, began_at: float, ended_at: float, *, num_in_flight: int, num_gpus: int) -> None:
        self.stats.busy_s += ended_at - (began_at if self.ended_at is None else self.ended_at)
        self.ended_at = ended_at
        self.stats.gpu_s += (ended_at - began_at) * num_gpus
        self.gpu_s_each += (ended_at - began_at) * num_gpus / num_in_flight
