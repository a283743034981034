"""How many runners a pool wants, and when the next may start after some have failed: the one rule of all that start and
stop them. Pure; knows no Ray, RunPod or clock.

Its figures are those of `batchfile.ledger.heartbeats.Scale`, which `GET /api/pools/{pool}/scale` answers.
"""

from dataclasses import dataclass
from math import ceil

from batchfile.errors import SettingsError

SHARDS_PER_RUNNER = 4  # a runner with more than this to do for itself wants company
WAIT_S = 30.0  # doubled with each setback in a row
WAIT_S_MAX = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How few and how many runners a pool may have. Raises: SettingsError where that is no range."""

    minimum: int = 0
    maximum: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.minimum <= self.maximum:
            raise SettingsError(f"{self.minimum}..{self.maximum} runners is no range: give 0 <= minimum <= maximum")


def wanted(
    *,
    pending_shards: int,
    leased_shards: int,
    live_runners: int,
    bounds: Bounds,
    shards_per_runner: int = SHARDS_PER_RUNNER,
) -> int:
    """As many as the work keeps busy, within the bounds.

    Without work it is the minimum. With work it is at least one, because a leased shard without a live runner is a
    dead one's, and at least every runner that may be at work: each holds a shard or is idle. So who takes away only
    idle runners never takes one too many, and the answer falls no faster than the work.
    """
    work = pending_shards + leased_shards
    busy_max = min(live_runners, leased_shards)
    return max(bounds.minimum, min(bounds.maximum, max(ceil(work / shards_per_runner), busy_max)))


class Backoff:
    """Of one pool. `now`: a monotonic clock."""

    def __init__(self) -> None:
        self._num_failed: int | None = None
        self._in_a_row = 0
        self._start_at = 0.0

    @property
    def wait_s(self) -> float:
        return min(WAIT_S_MAX, WAIT_S * 2.0 ** min(self._in_a_row - 1, 16))

    def look(self, *, num_failed: int, is_working: bool, now: float) -> int:
        """How many have failed since the last look, if that is a setback: nobody works, else it is 0.

        `num_failed`: all that are known of; fewer than before where old ones were forgotten.
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
        """Of `num` runners that are missing, those to start now: after a setback one at a time, until one works."""
        if not self._in_a_row or num <= 0:
            return max(0, num)
        if now < self._start_at:
            return 0
        self._start_at = now + self.wait_s  # also where its failure will not be seen
        return 1
