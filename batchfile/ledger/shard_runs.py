"""The shards of an open batch for people: runs of equal neighbors, and how many requests finished when. Pure."""

import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Literal, NamedTuple, Self

import msgspec

from batchfile.ledger.keys import PSEUDO_POOLS
from batchfile.ledger.records import ShardRecord, ShardState

STEPS = 60  # of the throughput
_DONE = frozenset({"done", "closed"})

ShownShard = Literal["done", "leased", "expired", "waiting"]


class ShardRow(NamedTuple):
    """What is remembered of a shard's record. `modified_at`: by the store's clock."""

    pool: str
    n: int
    state: ShardState
    runner: str
    num_requests: int
    num_finished: int
    modified_at: float

    @classmethod
    def of(cls, record: ShardRecord, modified_at: float) -> Self:
        return cls(
            pool=sys.intern(record.pool),
            n=record.n,
            state=record.state,
            runner=sys.intern(record.runner),
            num_requests=record.num_lines,
            num_finished=record.counts.finished,
            modified_at=modified_at,
        )


class ShardRun(msgspec.Struct, frozen=True, kw_only=True):
    """Shards of one pool, in the order of the input, that are in the same state: `num_shards` of them from the number
    `first` on. `leased`: by `runner`, which last wrote its progress `age_s` ago. `expired`: as `leased`, but for so
    long that another runner may claim it. `waiting`: given back, or released by its runner.
    """

    first: int
    num_shards: int = msgspec.field(name="shards")
    state: ShownShard
    num_requests: int = msgspec.field(name="requests")
    num_finished: int = msgspec.field(name="requests_finished")
    runner: str | None = None
    age_s: float | None = None


class Throughput(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that finished in each of `finished`'s steps of `step_s` seconds, from `start` (epoch seconds) on. A
    shard counts where it was last written.
    """

    start: float
    step_s: float
    finished: list[int]


class ShardList(msgspec.Struct, frozen=True, kw_only=True):
    """By pool. Shards that no runner has claimed yet are left out; `pools` of the batch counts them."""

    pools: dict[str, list[ShardRun]]
    throughput: Throughput


def shard_list(rows: Sequence[ShardRow], *, created_at: float, now: float, ttl_s: float) -> ShardList:
    """`rows`: by pool and number. `now`: epoch seconds. `ttl_s`: after which a lease has expired."""
    own = [row for row in rows if row.pool not in PSEUDO_POOLS]
    pools = {pool: _runs(some, now, ttl_s) for pool, some in groupby(own, key=lambda row: row.pool)}
    return ShardList(pools=pools, throughput=_throughput(own, created_at, now))


def _runs(rows: Iterable[ShardRow], now: float, ttl_s: float) -> list[ShardRun]:
    made = []
    for (state, runner), group in groupby(rows, key=lambda row: _shown(row, now, ttl_s)):
        some = list(group)
        run = ShardRun(
            first=some[0].n,
            num_shards=len(some),
            state=state,
            num_requests=sum(row.num_requests for row in some),
            num_finished=sum(row.num_finished for row in some),
            runner=runner,
            age_s=None if runner is None else round(max(0.0, now - max(row.modified_at for row in some)), 1),
        )
        made.append(run)
    return made


def _shown(row: ShardRow, now: float, ttl_s: float) -> tuple[ShownShard, str | None]:
    if row.state == "leased":
        return ("expired" if now - row.modified_at >= ttl_s else "leased"), row.runner
    return ("done" if row.state in _DONE else "waiting"), None


def _throughput(rows: Sequence[ShardRow], created_at: float, now: float) -> Throughput:
    step_s = max(1.0, (now - created_at) / STEPS)
    finished = [0] * STEPS
    for row in rows:
        step = int((row.modified_at - created_at) / step_s)
        finished[min(max(0, step), STEPS - 1)] += row.num_finished
    return Throughput(start=created_at, step_s=round(step_s, 3), finished=finished)
