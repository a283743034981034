"""Finds a call of the engine that does not return. It cannot be interrupted, so the process has to end.

The thread counts its own ticks instead of looking at a clock: while the process is stopped (SIGSTOP, a suspended
machine) it does not tick, and that time does not count.
"""

import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

TICK_S = 0.5
COLD = 3  # before an engine has answered for the first time, its calls may take this many times the bound
COMMIT_S_MAX = 10.0  # for what is finished, once a call counts as stuck
STUCK_CODE = 75  # of a process that ends by this: a temporary failure, in the terms of sysexits.h


@dataclass(slots=True)
class Calls:
    """Which call the loop's thread is in. Written by that thread alone.

    `name`: empty between two calls. `number`: of the call, so that two in a row are told apart. `is_warm`: the engine
    has answered something.
    """

    name: str = ""
    number: int = 0
    is_warm: bool = False

    def enter(self, name: str) -> None:
        self.number += 1
        self.name = name

    def leave(self) -> None:
        self.name = ""


class Watchdog:
    """`stall_s`: the bound. `is_committed`: what had finished is in the store. `on_stuck` is told what is stuck.

    `on_commit` asks for that commit. All three are called by the watchdog's thread.
    """

    def __init__(
        self,
        calls: Calls,
        stall_s: float,
        *,
        on_commit: Callable[[], None],
        is_committed: Callable[[], bool],
        on_stuck: Callable[[str], None],
        tick_s: float = TICK_S,
    ) -> None:
        self._calls = calls
        self._stall_s = stall_s
        self._on_commit = on_commit
        self._is_committed = is_committed
        self._on_stuck = on_stuck
        self._tick_s = tick_s
        self._number = 0
        self._num_ticks = 0  # in the same call
        self._is_late = False

    def run(self, over: threading.Event) -> None:
        """The thread's."""
        while not over.wait(self._tick_s):
            self.tick()

    def tick(self) -> None:
        """`tick_s` have passed in which this process ran."""
        name, number = self._calls.name, self._calls.number
        if not name or number != self._number:
            self._number, self._num_ticks, self._is_late = number, 0, False
            return
        self._num_ticks += 1
        bound_s = self._stall_s if self._calls.is_warm else COLD * self._stall_s
        late_s = self._num_ticks * self._tick_s - bound_s
        if late_s < 0:
            return
        if not self._is_late:
            self._is_late = True
            self._on_commit()
        elif self._is_committed() or late_s >= COMMIT_S_MAX:
            self._on_stuck(f"the engine's {name} has not returned for {bound_s:g} s, and cannot be interrupted")


def end_stuck(reason: str) -> NoReturn:
    """End this process: its shards' leases expire, and the next runner counts the death."""
    with suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(STUCK_CODE)
