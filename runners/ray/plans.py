"""What is to run on the cluster, and what follows from what does. Pure; knows no Ray."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..scaling import Bounds

PORTS_PER_POOL = 100  # so that no two runners of one machine want the same one

HolderState = Literal["running", "waiting", "ended"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One runner's process and what it takes of a node. `on`: a custom resource, of which it takes one.

    `arguments`: of `python -m runners`, with whatever Python the node has.
    """

    arguments: tuple[str, ...]
    num_gpus: int = 0
    on: str | None = None
    grace_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPlan:
    """`first_port`: of /metrics of runner 0, the next has the next; 0: none. `arguments`: what every runner is told."""

    pool: str
    bounds: Bounds
    num_gpus: int = 0
    on: str | None = None
    first_port: int = 0
    idle_exit_s: float = 300.0
    grace_s: float = 0.0
    arguments: tuple[str, ...] = ()

    def task(self, number: int) -> Task:
        """Runners below the minimum stay; the others end when they have been idle for long enough."""
        port = self.first_port and self.first_port + number % PORTS_PER_POOL
        leave = () if number < self.bounds.minimum else ("--idle-exit", f"{self.idle_exit_s:g}")
        told = ("--pool", self.pool, *self.arguments, "--metrics-port", str(port), *leave, "--slot", "0")
        return Task(arguments=told, num_gpus=self.num_gpus, on=self.on, grace_s=self.grace_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """All that `up` says. `store`, `config`: as on the command line. `look_s`: between two looks of the launcher."""

    plans: tuple[PoolPlan, ...]
    store: str | None = None
    config: str | None = None
    look_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HolderReport:
    """`pid`: the holder's; its child is the runner. `last_code`: how the runner ended before it waits or ended."""

    task: Task
    state: HolderState
    host: str
    pid: int
    last_code: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolReport:
    """`holders`: by number; None where one does not answer, for want of a place or because it is being restarted."""

    plan: PoolPlan
    wanted: int
    pending_shards: int
    leased_shards: int
    holders: Mapping[int, HolderReport | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """Numbers of holders. `remove`: those that hold nothing. `stop`: in order; a later look removes them."""

    start: Sequence[int] = field(default_factory=tuple)
    stop: Sequence[int] = field(default_factory=tuple)
    remove: Sequence[int] = field(default_factory=tuple)


def moves(plan: PoolPlan, holders: Mapping[int, HolderReport | None], wanted: int) -> Moves:
    """No runner is stopped for being one too many: those above the minimum leave by themselves.

    Stopped are those of another plan. One that is too many and has no place yet is given up.
    """
    ended = {n for n, holder in holders.items() if holder is not None and holder.state == "ended"}
    alive = holders.keys() - ended
    num_surplus = max(0, len(alive) - wanted)
    unplaced = sorted((n for n in alive if holders[n] is None), reverse=True)[:num_surplus]
    foreign = [n for n in alive if (holder := holders[n]) is not None and not _fits(plan, n, holder)]
    free = (n for n in range(plan.bounds.maximum) if n not in holders)
    num_missing = max(0, wanted - len(alive))
    return Moves(
        start=[number for number, _ in zip(free, range(num_missing), strict=False)],
        stop=sorted(foreign),
        remove=sorted(ended | set(unplaced)),
    )


def _fits(plan: PoolPlan, number: int, holder: HolderReport) -> bool:
    return number < plan.bounds.maximum and holder.task == plan.task(number)


def holder_name(pool: str, number: int) -> str:
    """A pool's name has no slash, so this can be read back."""
    return f"{pool}/{number}"


def read_holder_name(name: str) -> tuple[str, int] | None:
    """Pool and number; None where it is no holder's name."""
    found = re.fullmatch(r"([^/]+)/(\d+)", name)
    return None if found is None else (found[1], int(found[2]))
