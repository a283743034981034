"""Plans what to run on the cluster, and computes changes from what runs. Pure; independent of Ray."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..scaling import Bounds

PORTS_PER_POOL = 100  # so that no two runners of one machine use the same port

HolderState = Literal["running", "waiting", "ended"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One runner process and its resources. `on`: a custom resource, of which it uses one.

    `arguments`: of `python -m runners`, run with the node's Python.
    """

    arguments: tuple[str, ...]
    num_gpus: int = 0
    on: str | None = None
    grace_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPlan:
    """`first_port`: metrics port of runner 0, plus one for each further one; 0: none. `arguments`: of all runners."""

    pool: str
    bounds: Bounds
    num_gpus: int = 0
    on: str | None = None
    first_port: int = 0
    idle_exit_s: float = 300.0
    grace_s: float = 0.0
    arguments: tuple[str, ...] = ()

    def task(self, number: int) -> Task:
        """Runners below the minimum stay; the others exit when they have been idle for `idle_exit_s`."""
        port = self.first_port and self.first_port + number % PORTS_PER_POOL
        leave = () if number < self.bounds.minimum else ("--idle-exit", f"{self.idle_exit_s:g}")
        arguments = ("--pool", self.pool, *self.arguments, "--metrics-port", str(port), *leave, "--slot", "0")
        return Task(arguments=arguments, num_gpus=self.num_gpus, on=self.on, grace_s=self.grace_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The order of `up`. `store`, `config`: from the command line. `look_s`: interval of the launcher's checks."""

    plans: tuple[PoolPlan, ...]
    store: str | None = None
    config: str | None = None
    look_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HolderReport:
    """`pid`: of the holder; its child is the runner. `last_code`: the last exit code of the runner."""

    task: Task
    state: HolderState
    host: str
    pid: int
    last_code: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolReport:
    """`holders`: by number; None for one that does not answer because it waits for a node or is restarting."""

    plan: PoolPlan
    wanted: int
    pending_shards: int
    leased_shards: int
    holders: Mapping[int, HolderReport | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """Numbers of holders. `remove`: those without a runner. `stop`: gracefully; a later check removes them."""

    start: Sequence[int] = field(default_factory=tuple)
    stop: Sequence[int] = field(default_factory=tuple)
    remove: Sequence[int] = field(default_factory=tuple)


def moves(plan: PoolPlan, holders: Mapping[int, HolderReport | None], wanted: int) -> Moves:
    """Never stops a surplus runner, because those above the minimum exit by themselves.

    Stops runners of another plan. Removes a surplus holder that has no node yet.
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
    """`read_holder_name` reverses this, because the name of a pool has no slash."""
    return f"{pool}/{number}"


def read_holder_name(name: str) -> tuple[str, int] | None:
    """Pool and number; None if it is not the name of a holder."""
    found = re.fullmatch(r"([^/]+)/(\d+)", name)
    return None if found is None else (found[1], int(found[2]))
