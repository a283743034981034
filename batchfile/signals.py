"""Handles the signals that ask a process to stop, even while the main thread does not respond.

Handlers run in the main thread, between two of its instructions. A call that blocks for long (a step of an engine in
this process, an import) would delay them, so a thread receives each signal too, and ends the process where the main
thread does not. That is safe at any moment: results are committed by conditional writes, and a guard kills the
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
from typing import NoReturn, Protocol

NUMBERS = (signal.SIGINT, signal.SIGTERM)
_OVER = b"\0"  # no signal has this number


class Stoppable(Protocol):
    """A runner, or what does its work in several processes."""

    @property
    def is_building(self) -> bool: ...

    def stop(self) -> None: ...

    def stop_now(self) -> None: ...


class Interrupted(BaseException):
    """A signal arrived while there was no engine. A BaseException, so that no library swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(kw_only=True)
class StopSignals(ABC):
    """SIGINT and SIGTERM of a process with one runner, which ends in time even if its engine hangs.

    The first signal: finish the requests in flight, for `grace_s` at most, and release the rest. The second: stop now.
    `runner`: while there is one. `end_s_max`: the time to commit, release and close the engine after the grace period;
    `end_now_s_max`: the same after a second signal. `num`: how many signals have arrived.
    """

    end_s_max: float
    end_now_s_max: float
    grace_s: float = 0.0
    runner: Stoppable | None = None
    num: int = 0

    @abstractmethod
    def end_by_force(self, number: int) -> NoReturn:
        """End the process, in the thread that receives the signals: the main thread did not respond in time."""

    def caught(self) -> AbstractContextManager[None]:
        """Enter it in the main thread."""
        return hearing(self.handle, self._patience_s, self.end_by_force)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """In the main thread. Raises: Interrupted without a ready engine."""
        self.num += 1  # first of all: the next signal may interrupt this call anywhere
        self.stop(number, self.num)

    def stop(self, number: int, num: int) -> None:
        """Stop for the signal `number`, which is the `num`th. Raises: as `handle`."""
        runner = self.runner
        if runner is None or runner.is_building:
            raise Interrupted(number)
        if num == 1:
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

    `handle` runs in the main thread, for each signal. `patience_s` and `end` are called by the watching thread:
    `patience_s` for each signal, with how many have arrived; it returns the seconds that the main thread has from then
    on (never more than before). `end` is called when these are over, with the last signal.
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
        received = os.read(near, 64)
        if _OVER in received:
            return
        ours = [number for number in received if number in NUMBERS]
        if ours:
            num, last = num + len(ours), ours[-1]
            deadline = min(deadline, time.monotonic() + patience_s(num))
