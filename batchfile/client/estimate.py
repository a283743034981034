"""How long a file will take and what it will cost, from a sample of it and what the pools' runners say. Pure.

What nobody measured is None: no figure is invented.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from batchfile.client.prices import HostedPrice
from batchfile.client.sample import Sample
from batchfile.ledger.records import PresenceRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolTime:
    """A pool's part of the work. `requests_per_s`: of its runners while they had work in the last minute; None: none.

    `output_tokens_each`: what its runners' answers had on average since they began. `waiting`: requests before ours.
    `request_s`: what one request takes, the median of the slowest runner. `busy_s`: for ours alone; `until_s`: until
    ours are done; neither is less than one request takes.
    """

    pool: str
    num_requests: int
    num_runners: int
    waiting: int
    requests_per_s: float | None
    output_tokens_each: float | None
    request_s: float | None = None

    @property
    def busy_s(self) -> float | None:
        return self._takes_s(self.num_requests)

    @property
    def until_s(self) -> float | None:
        return self._takes_s(self.num_requests + self.waiting)

    def _takes_s(self, num: int) -> float | None:
        return None if self.requests_per_s is None else max(num / self.requests_per_s, self.request_s or 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """`tokenizer` None: tokens were counted by characters. `times`: of the pools that they lead to; None: not asked.

    `gpus` each pool has, at `gpu_hour` dollars. `gpu_usd`: for ours alone; None where something is unknown.
    """

    sample: Sample
    tokenizer: str | None
    times: list[PoolTime] | None
    expected_output_tokens: int | None
    gpu_hour: float | None
    gpus: int | None
    hosted: list[HostedPrice]

    @property
    def gpu_usd(self) -> float | None:
        times = self.times or []
        busy = [time.busy_s for time in times if time.busy_s is not None]
        if not busy or len(busy) < len(times) or self.gpu_hour is None or self.gpus is None:
            return None
        return sum(busy) / 3600 * self.gpu_hour * self.gpus


def pool_times(sample: Sample, runners: Sequence[PresenceRecord], waiting: Mapping[str, int]) -> list[PoolTime]:
    """By pool, in order of their names."""
    return [_pool_time(pool, num, runners, waiting.get(pool, 0)) for pool, num in sorted(sample.pools.items())]


def expected_output_tokens(sample: Sample, times: Sequence[PoolTime]) -> int | None:
    """If these requests are answered at the lengths of the pools' answers so far; None where a pool has none yet."""
    total = 0.0
    for time in times:
        if time.output_tokens_each is None:
            return None
        total += time.num_requests * time.output_tokens_each
    return min(round(total), round(sample.max_output_tokens)) if times else None


def _pool_time(pool: str, num: int, runners: Sequence[PresenceRecord], waiting: int) -> PoolTime:
    own = [runner for runner in runners if runner.pool == pool]
    rate = sum(runner.requests_per_s for runner in own)
    answers = sum(runner.totals.succeeded for runner in own)
    tokens = sum(runner.totals.output_tokens for runner in own)
    return PoolTime(
        pool=pool,
        num_requests=num,
        num_runners=len(own),
        waiting=waiting,
        requests_per_s=rate or None,
        output_tokens_each=tokens / answers if answers else None,
        request_s=max((runner.latency_p50_s for runner in own if runner.latency_p50_s is not None), default=None),
    )
