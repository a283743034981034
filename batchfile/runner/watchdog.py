"""Finds a call of the engine that does not return. It cannot be interrupted, so the process has to end.

The thread counts its own ticks instead of looking at a clock: while the process is stopped (SIGSTOP, a suspended
machine) it does not tick, and that time does not count.
"""

import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

import structlog

from batchfile.runner.active import PendingRequest

log = structlog.get_logger()

TICK_S = 0.5
COLD = 3  # before an engine has answered for the first time, its calls may take this many times the bound
COMMIT_S_MAX = 10.0  # for what is finished, once a call counts as stuck


@dataclass(slots=True)
class Calls:
    """Which call of the engine a thread is in. Written by that thread alone.

    `name`: empty between two calls. `number`: of the call, so that two in a row are told apart. `is_warm`: the engine
    has answered something. `item`: the request, where the call is about one alone and runs nothing.
    """

    name: str = ""
    number: int = 0
    is_warm: bool = False
    item: PendingRequest | None = None

    def enter(self, name: str, item: PendingRequest | None = None) -> None:
        self.number += 1
        self.item = item
        self.name = name

    def leave(self) -> None:
        self.name = ""
        self.item = None


@dataclass(slots=True)
class _Watch:
    """How many ticks a thread has been in the same call, as far as is known."""

    calls: Calls
    number: int = 0
    num_ticks: int = 0
    is_late: bool = False


class Watchdog:
    """`calls`: one for each thread that calls the engine. `stall_s`: the bound. `on_stuck` is told what is stuck.

    `on_commit` asks for a commit of what had finished and of which request is accused; `is_committed`: it was done. All
    three are called by the watchdog's thread.
    """

    def __init__(
        self,
        calls: Sequence[Calls],
        stall_s: float,
        *,
        on_commit: Callable[[], None],
        is_committed: Callable[[], bool],
        on_stuck: Callable[[str], None],
        tick_s: float = TICK_S,
    ) -> None:
        self._watches = [_Watch(one) for one in calls]
        self._stall_s = stall_s
        self._on_commit = on_commit
        self._is_committed = is_committed
        self._on_stuck = on_stuck
        self._tick_s = tick_s

    def run(self, over: threading.Event) -> None:
        """The thread's."""
        while not over.wait(self._tick_s):
            self.tick()

    def tick(self) -> None:
        """`tick_s` have passed in which this process ran."""
        for watch in self._watches:
            self._look(watch)

    def _look(self, watch: _Watch) -> None:
        # In this order: where the number is the one of the tick before, the item is of the same call.
        item, name, number = watch.calls.item, watch.calls.name, watch.calls.number
        if not name or number != watch.number:
            watch.number, watch.num_ticks, watch.is_late = number, 0, False
            return
        watch.num_ticks += 1
        bound_s = self._stall_s if watch.calls.is_warm else COLD * self._stall_s
        late_s = watch.num_ticks * self._tick_s - bound_s
        if late_s < 0:
            return
        if not watch.is_late:
            watch.is_late = True
            if item is not None:
                _accuse(item)
            self._on_commit()
        elif self._is_committed() or late_s >= COMMIT_S_MAX:
            self._on_stuck(f"the engine's {name} has not returned for {bound_s:g} s, and cannot be interrupted")


def _accuse(item: PendingRequest) -> None:
    """Its record is to say that this process ends for it."""
    batch_id, shard = item.shard.held.batch.batch_id, item.shard.held.record.n
    log.error("request.stuck", batch_id=batch_id, shard=shard, custom_id=item.custom_id)
    item.shard.accused = item.line


def end_stuck(reason: str) -> NoReturn:
    """End this process: its shards' leases expire, and the next runner counts the death."""
    with suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(os.EX_TEMPFAIL)
