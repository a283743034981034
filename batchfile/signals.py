"""Signals that ask a process to stop, heard also where the main thread does not respond.

Handlers run in the main thread, between two of its instructions. A call that blocks for long (a step of an engine in
this process, an import) would keep them waiting, so a thread hears of each signal too and ends the process where the
main thread does not. That is safe at any moment: results are committed by conditional writes, and a guard kills the
engine's processes (engine/vllm/processes.py).
"""

import os
import select
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from batchfile.runner.runner import Runner

NUMBERS = (signal.SIGINT, signal.SIGTERM)
_OVER = b"\0"  # no signal has this number


class Interrupted(BaseException):
    """A signal came while there was no engine. BaseException: no library may swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(kw_only=True)
class StopSignals(ABC):
    """What SIGINT and SIGTERM do to a process with one runner, which ends in time whatever its engine does.

    The first: finish what is in flight, for `grace_s` at most, and give back the rest. The second: stop now. `runner`:
    while there is one. `end_s_max`: to commit, to release and to close the engine, once the grace is over;
    `end_now_s_max`: the same after a second signal. `num`: how many have come.
    """

    end_s_max: float
    end_now_s_max: float
    grace_s: float = 0.0
    runner: "Runner | None" = None
    num: int = 0

    @abstractmethod
    def end_by_force(self, number: int) -> NoReturn:
        """In the thread that hears the signals: the main thread did not respond in time to the last one."""

    def caught(self) -> AbstractContextManager[None]:
        """Enter it in the main thread."""
        return hearing(self.handle, self._patience_s, self.end_by_force)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """In the main thread. Raises: Interrupted where there is no engine."""
        self.num += 1
        runner = self.runner
        if runner is None or runner.is_building:
            raise Interrupted(number)
        if self.num == 1:
            runner.stop()
        else:
            runner.stop_now()

    def _patience_s(self, num: int) -> float:
        if num == 1:
            return (0.0 if self.runner is None else self.grace_s) + self.end_s_max
        if self.runner is not None:
            self.runner.stop_now()
        return self.end_now_s_max


def on_stop(stop: Callable[[], None]) -> None:
    """Call `stop` for each SIGINT and SIGTERM, in the main thread."""
    for number in NUMBERS:
        signal.signal(number, lambda *_: stop())


@contextmanager
def hearing(
    handle: Callable[[int, FrameType | None], None],
    patience_s: Callable[[int], float],
    end: Callable[[int], NoReturn],
) -> Iterator[None]:
    """Enter it in the main thread.

    `handle` runs in the main thread, for each signal. `patience_s` and `end` are called by the thread: the first for
    each signal, with how many have come, gives the seconds that the main thread has from then on (never more than
    before); the second, when these are over, with the last signal.
    """
    near, far = os.pipe()
    for fd in (near, far):
        os.set_blocking(fd, False)
    old = {number: signal.signal(number, handle) for number in NUMBERS}
    old_fd = signal.set_wakeup_fd(far, warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(near, patience_s, end), name="signals", daemon=True)
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(old_fd)
        for number, handler in old.items():
            signal.signal(number, handler)
        os.write(far, _OVER)
        watch.join()
        os.close(near)
        os.close(far)


def _watch(near: int, patience_s: Callable[[int], float], end: Callable[[int], NoReturn]) -> None:
    num, last, deadline = 0, int(signal.SIGINT), float("inf")
    while True:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            end(last)
        if not select.select([near], [], [], min(left_s, 3600.0))[0]:
            continue
        heard = os.read(near, 64)
        if _OVER in heard:
            return
        ours = [number for number in heard if number in NUMBERS]
        if ours:
            num, last = num + len(ours), ours[-1]
            deadline = min(deadline, time.monotonic() + patience_s(num))
