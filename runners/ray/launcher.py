"""A detached Ray actor that keeps the wanted number of holders for each pool, and calls to Ray shared with the command.

All its state is read from the store and from Ray, so it can be restarted on any node. It never stops surplus runners;
they exit when they are idle.
"""

import os
import threading
from collections.abc import Iterable, Mapping
from typing import Any

import ray
import structlog
from ray.exceptions import GetTimeoutError, RayActorError

from batchfile import logs
from batchfile.errors import StoreError
from batchfile.ledger.heartbeats import read_scale
from batchfile.ledger.status import StatusReader
from batchfile.open_ledger import open_service_ledger
from batchfile.settings import CONFIG_VARIABLE, load_settings

from ..scaling import wanted
from .holder import Holder
from .plans import HolderReport, Order, PoolPlan, PoolReport, Task, holder_name, moves, read_holder_name

log = structlog.get_logger()

NAMESPACE = "batchfile"
LAUNCHER = "launcher"
ANSWER_S_MAX = 5.0
CPUS_PER_RUNNER = 1.0


def holder_names() -> set[tuple[str, int]]:
    """Pool and number of every holder that exists, whether it is placed on a node or not."""
    named = ray.util.list_named_actors(all_namespaces=True)
    found = (read_holder_name(entry["name"]) for entry in named if entry["namespace"] == NAMESPACE)
    return {name for name in found if name is not None}


def find(name: str) -> Any | None:
    try:
        return ray.get_actor(name, NAMESPACE)
    except ValueError:
        return None


def start_holder(pool: str, number: int, task: Task) -> None:
    """Create a holder. Until a node fits, Ray queues it, and an autoscaler may add a node."""
    name = holder_name(pool, number)
    actor = ray.remote(Holder).options(
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        max_restarts=-1,
        num_cpus=CPUS_PER_RUNNER,
        num_gpus=task.num_gpus,
        resources={} if task.on is None else {task.on: 1},
    )
    actor.remote(name, task)


def reports(names: Iterable[tuple[str, int]]) -> dict[tuple[str, int], HolderReport | None]:
    """The report of each existing holder; None for those that do not answer in time."""
    handles = {name: handle for name in names if (handle := find(holder_name(*name))) is not None}
    asked = {name: handle.report.remote() for name, handle in handles.items()}
    if not asked:
        return {}
    _, silent = ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_S_MAX)
    found = {name: _now(reference) for name, reference in asked.items()}
    for reference in silent:
        ray.cancel(reference)  # otherwise requests pile up for a holder that waits for a node
    return found


def _now(reference: Any) -> HolderReport | None:
    try:
        found: HolderReport = ray.get(reference, timeout=0)
    except (GetTimeoutError, RayActorError):
        return None
    return found


def tell_stop(names: Iterable[tuple[str, int]]) -> None:
    for name in names:
        handle = find(holder_name(*name))
        if handle is not None:
            handle.stop.remote()


def remove(names: Iterable[tuple[str, int]]) -> None:
    """Kill the actors and free their resources. A runner that still runs is killed."""
    for name in names:
        kill(holder_name(*name))


def kill(name: str) -> None:
    handle = find(name)
    if handle is not None:
        ray.kill(handle, no_restart=True)


def by_pool(
    found: Mapping[tuple[str, int], HolderReport | None],
) -> dict[str, dict[int, HolderReport | None]]:
    pools: dict[str, dict[int, HolderReport | None]] = {}
    for (pool, number), report in found.items():
        pools.setdefault(pool, {})[number] = report
    return pools


class Launcher:
    """Creating it raises SettingsError if the settings are invalid."""

    def __init__(self, order: Order) -> None:
        logs.configure(actor=LAUNCHER)
        if order.config is not None:
            os.environ[CONFIG_VARIABLE] = order.config
        self._order = order
        self._settings = load_settings()
        logs.set_level(self._settings.log_level)
        self._reader: StatusReader | None = None
        self._reports: dict[str, PoolReport] = {}
        threading.Thread(target=self._keep, name="keep", daemon=True).start()

    def order(self) -> Order:
        return self._order

    def reports(self) -> list[PoolReport]:
        """The reports of the last check, without pools that have not been checked yet."""
        return [self._reports[plan.pool] for plan in self._order.plans if plan.pool in self._reports]

    def _keep(self) -> None:
        pause = threading.Event()
        while True:
            try:
                self._look()
            except StoreError as error:
                log.warning("store.awaited", error=str(error), what_now="runners stay unchanged")
            except Exception:  # the top of the thread; the next check may succeed
                log.exception("scaling.failed")
            pause.wait(self._order.look_s)

    def _look(self) -> None:
        pools = by_pool(reports(holder_names()))
        for plan in self._order.plans:
            self._move(plan, pools.pop(plan.pool, {}))
        for pool, holders in pools.items():  # of an earlier order
            ended = [(pool, n) for n, holder in holders.items() if holder is None or holder.state == "ended"]
            remove(ended)
            tell_stop((pool, n) for n in holders if (pool, n) not in ended)

    def _move(self, plan: PoolPlan, holders: Mapping[int, HolderReport | None]) -> None:
        """Raises: StoreError."""
        if self._reader is None:
            self._reader = StatusReader(open_service_ledger(self._order.store, self._settings))
        scale = read_scale(self._reader, plan.pool)
        alive = [holder for holder in holders.values() if holder is None or holder.state != "ended"]
        want = wanted(
            pending_shards=scale.pending_shards,
            leased_shards=scale.leased_shards,
            live_runners=len(alive),
            bounds=plan.bounds,
        )
        todo = moves(plan, holders, want)
        remove((plan.pool, n) for n in todo.remove)
        tell_stop((plan.pool, n) for n in todo.stop)
        for number in todo.start:
            start_holder(plan.pool, number, plan.task(number))
        if todo.start or todo.stop or todo.remove:
            log.info(
                "pool.changed", pool=plan.pool, wanted=want, started=todo.start, stopped=todo.stop, removed=todo.remove
            )
        self._reports[plan.pool] = PoolReport(
            plan=plan,
            wanted=want,
            pending_shards=scale.pending_shards,
            leased_shards=scale.leased_shards,
            holders=dict(holders),
        )
