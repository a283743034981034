"""How long things took: counts per bucket since the start, and the quantiles of the last few. One writer, pure."""

from bisect import bisect_left
from collections import deque
from math import ceil

REQUEST_BOUNDS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0)
CHECKPOINT_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0)
LAST = 1_000  # values that quantiles are taken of


class Histogram:
    """`bounds` are the upper edges of the buckets, edges included; one more bucket takes what is longer."""

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
        """Of the last 1,000 values, the smallest that at least `share` of them do not exceed; None without any."""
        values = sorted(self._last)
        return values[max(0, ceil(share * len(values)) - 1)] if values else None
