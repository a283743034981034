"""Computes how many runners a pool needs, and when the next may start after failures. Shared by all autoscalers.

Pure; independent of Ray, RunPod and clocks. Its inputs are those of `batchfile.ledger.heartbeats.Scale`, which
`GET /api/pools/{pool}/scale` returns.
"""

from dataclasses import dataclass
from math import ceil

from batchfile.errors import SettingsError

SHARDS_PER_RUNNER = 4  # with more shards than this per runner, another one is started
WAIT_S = 30.0  # doubled with each consecutive setback
WAIT_S_MAX = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The minimum and maximum number of runners of a pool. Raises: SettingsError if the range is invalid."""

    minimum: int = 0
    maximum: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.minimum <= self.maximum:
            raise SettingsError(f"{self.minimum}..{self.maximum} runners is not a range; use 0 <= minimum <= maximum")


def wanted(
    *,
    pending_shards: int,
    leased_shards: int,
    live_runners: int,
    bounds: Bounds,
    shards_per_runner: int = SHARDS_PER_RUNNER,
) -> int:
    """As many runners as the work keeps busy, within the bounds.

    Without work it is the minimum. With work it is at least one, because a leased shard without a live runner belongs
    to a dead one. It is also at least the number of runners that may be busy, because each holds a shard or is idle:
    a caller that stops only idle runners never stops too many.
    """
    work = pending_shards + leased_shards
    busy_max = min(live_runners, leased_shards)
    return max(bounds.minimum, min(bounds.maximum, max(ceil(work / shards_per_runner), busy_max)))


class Backoff:
    """Delays new runners of one pool after failures. `now`: a monotonic clock."""

    def __init__(self) -> None:
        self._num_failed: int | None = None
        self._in_a_row = 0
        self._start_at = 0.0

    @property
    def wait_s(self) -> float:
        return min(WAIT_S_MAX, WAIT_S * 2.0 ** min(self._in_a_row - 1, 16))

    def look(self, *, num_failed: int, is_working: bool, now: float) -> int:
        """How many runners have failed since the last call, if no other runner works; otherwise 0.

        `num_failed`: the known total; it can decrease when old failures are forgotten.
        """
        num_new = 0 if self._num_failed is None else max(0, num_failed - self._num_failed)
        self._num_failed = num_failed
        if is_working:
            self._in_a_row = 0
        if is_working or not num_new:
            return 0
        self._in_a_row += 1
        self._start_at = now + self.wait_s
        return num_new

    def allowed(self, num: int, now: float) -> int:
        """How many of `num` missing runners to start now: after a setback one at a time, until one works."""
        if not self._in_a_row or num <= 0:
            return max(0, num)
        if now < self._start_at:
            return 0
        self._start_at = now + self.wait_s  # also if its failure is not reported
        return 1
