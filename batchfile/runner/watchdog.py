"""Detects an engine call that does not return. It cannot be interrupted, so the process has to end.

It counts its own ticks instead of reading a clock: while the process is stopped (SIGSTOP, a suspended machine) it does
not tick, and that time does not count.
"""

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

import structlog

from batchfile.runner.state import Calls, PendingRequest, SharedState

log = structlog.get_logger()

TICK_S = 0.5
COLD = 3  # before an engine's first answer, its calls may take this many times the limit
COMMIT_S_MAX = 10.0  # to commit finished results, once a call counts as stuck


@dataclass(slots=True)
class _Watch:
    """How many ticks a thread has been in the same call, as far as is known."""

    calls: Calls
    number: int = 0
    num_ticks: int = 0
    is_late: bool = False


class Watchdog:
    """Watches the calls of all threads, `state.calls`."""

    def __init__(self, state: SharedState, *, tick_s: float = TICK_S) -> None:
        self._state = state
        self._watches = [_Watch(calls) for calls in state.calls.values()]
        self._tick_s = tick_s

    def tick(self) -> str | None:
        """Call it each time `tick_s` have passed while this process ran. Returns what is stuck, when the process must
        end.

        Before that, finished results and the accused request are committed.
        """
        stuck = [reason for watch in self._watches if (reason := self._look(watch))]
        return stuck[0] if stuck else None

    def _look(self, watch: _Watch) -> str | None:
        # The order matters: if the number is still the one of the last tick, the item belongs to the same call.
        item, name, number = watch.calls.item, watch.calls.name, watch.calls.number
        if not name or number != watch.number:
            watch.number, watch.num_ticks, watch.is_late = number, 0, False
            return None
        watch.num_ticks += 1
        bound_s = self._state.ledger.limits.engine_stall_s * (1 if watch.calls.is_warm else COLD)
        late_s = watch.num_ticks * self._tick_s - bound_s
        if late_s < 0:
            return None
        if not watch.is_late:
            watch.is_late = True
            if item is not None:
                _accuse(item)
            self._state.commit_soon()
        elif late_s >= COMMIT_S_MAX or self._is_committed():
            return f"the engine's {name} has not returned for {bound_s:g} s and cannot be interrupted"
        return None

    def _is_committed(self) -> bool:
        return not any(shard.finished or shard.accused is not None for shard in list(self._state.shards))


def _accuse(item: PendingRequest) -> None:
    """Its record is to say that this process ends because of it."""
    log.error("request.stuck", batch_id=item.shard.batch_id, shard=item.shard.held.name, custom_id=item.custom_id)
    item.shard.accused = item.line


def end_stuck(reason: str) -> NoReturn:
    """End this process: its shards' leases expire, and the next runner counts the crash."""
    with suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(os.EX_TEMPFAIL)
