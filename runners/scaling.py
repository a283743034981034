"""How many runners a pool wants: the one rule of all that start and stop them. Pure; knows no Ray, RunPod or clock.

Its figures are those of `batchfile.ledger.demand.Scale`, which `GET /api/pools/{pool}/scale` answers.
"""

from dataclasses import dataclass
from math import ceil

from batchfile.errors import SettingsError

SHARDS_PER_RUNNER = 4  # a runner with more than this to do for itself wants company


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
