"""A detached actor that keeps as many holders as each pool wants. What it knows it reads: from the store, from Ray.

It never stops a runner for being one too many; those leave when they are idle. Killed, it begins again anywhere.
"""

import os
import threading
from collections.abc import Mapping

import structlog

from batchfile import logs
from batchfile.client.resolve import open_service_ledger
from batchfile.errors import StoreError
from batchfile.ledger.demand import read_scale
from batchfile.ledger.status import StatusReader
from batchfile.settings import CONFIG_VARIABLE, load_settings

from ..scaling import wanted
from . import actors
from .plans import HolderReport, Order, PoolPlan, PoolReport, moves

log = structlog.get_logger()


class Launcher:
    """Raises: SettingsError at its creation."""

    def __init__(self, order: Order) -> None:
        logs.configure(actor=actors.LAUNCHER)
        if order.config is not None:
            os.environ[CONFIG_VARIABLE] = order.config
        self._order = order
        self._settings = load_settings()
        self._reader: StatusReader | None = None
        self._reports: dict[str, PoolReport] = {}
        threading.Thread(target=self._keep, name="keep", daemon=True).start()

    def order(self) -> Order:
        return self._order

    def reports(self) -> list[PoolReport]:
        """As it was at the last look; a pool that was not seen yet is missing."""
        return [self._reports[plan.pool] for plan in self._order.plans if plan.pool in self._reports]

    def _keep(self) -> None:
        pause = threading.Event()
        while True:
            try:
                self._look()
            except StoreError as error:
                log.warning("store.awaited", error=str(error), what_now="runners stay as they are")
            except Exception:  # the top of the thread: the next look may be luckier
                log.exception("look.failed")
            pause.wait(self._order.look_s)

    def _look(self) -> None:
        pools = actors.by_pool(actors.reports(actors.holder_names()))
        for plan in self._order.plans:
            self._move(plan, pools.pop(plan.pool, {}))
        for pool, holders in pools.items():  # of an earlier order
            ended = [(pool, n) for n, holder in holders.items() if holder is None or holder.state == "ended"]
            actors.bury(ended)
            actors.tell_stop((pool, n) for n in holders if (pool, n) not in ended)

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
        actors.bury((plan.pool, n) for n in todo.bury)
        actors.tell_stop((plan.pool, n) for n in todo.stop)
        for number in todo.start:
            actors.start_holder(plan.pool, number, plan.task(number))
        if todo.start or todo.stop or todo.bury:
            log.info(
                "pool.changed", pool=plan.pool, wanted=want, started=todo.start, stopped=todo.stop, buried=todo.bury
            )
        self._reports[plan.pool] = PoolReport(
            plan=plan,
            wanted=want,
            pending_shards=scale.pending_shards,
            leased_shards=scale.leased_shards,
            holders=dict(holders),
        )
