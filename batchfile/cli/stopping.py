"""Ctrl-C and SIGTERM while a file runs: what the first does, what the second does, and that the process does end.

The handlers run in the main thread, between two of its instructions. A call that blocks for long (a step of an engine
in this process, an import) would keep them waiting, so a thread hears of each signal too and ends the process where
the main thread does not. That is safe at any moment: results are committed by conditional writes, and a guard kills
the engine's processes (engine/guard.py).
"""

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import NoReturn

from batchfile.cli.exits import Exit, end_process
from batchfile.cli.shown import about, counted
from batchfile.local.progress import Snapshot
from batchfile.runner.runner import Runner

END_S_MAX = 15.0  # to commit, to release and to close the engine, once the grace is over
END_NOW_S_MAX = 3.0  # the same after a second signal
_OVER = b"\0"  # no signal has this number
_NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal came while nothing was in flight. BaseException: no library may swallow it."""

    def __init__(self, code: Exit) -> None:
        super().__init__(code)
        self.code = code


@dataclass(slots=True, kw_only=True)
class Signals:
    """First signal: finish what is in flight, for `grace_s` at most. Second: stop now. Third: end on the spot.

    `say` writes a line for people. `runner`: while there is one; `seen`: how it went a moment ago. `on_end` is called
    once, before the process ends by a signal.
    """

    say: Callable[[str], None]
    on_end: Callable[[], None]
    grace_s: float
    runner: Runner | None = None
    seen: Snapshot | None = None
    code: Exit | None = None
    num: int = 0
    _is_unwinding: bool = False
    _is_end_said: bool = False
    _ending: threading.RLock = field(default_factory=threading.RLock)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """In the main thread."""
        self.code = _code_of(number)
        self.num += 1
        runner = self.runner
        if self.num >= 3 or (self.num == 2 and self._is_unwinding):
            self.end(self.code)
        if runner is None or runner.info is None or runner.is_building:
            self._is_unwinding = True
            raise Interrupted(self.code)
        if self.num == 1:
            again = "press Ctrl-C again" if number == signal.SIGINT else "send another signal"
            self.say(_first_words(runner, self.seen, self.grace_s, again))
            runner.stop()
        else:
            self.say("stopping now")
            runner.stop_now()

    def say_end(self) -> None:
        with self._ending:
            if not self._is_end_said:
                self._is_end_said = True
                self.on_end()

    def end(self, code: Exit) -> NoReturn:
        """End the process from any thread, whatever the main thread does."""
        with suppress(OSError, ValueError):  # the reader of stderr has gone
            self.say_end()
        end_process(code)

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Call it in the main thread."""
        near, far = os.pipe()
        for end in (near, far):
            os.set_blocking(end, False)
        old = {number: signal.signal(number, self.handle) for number in _NUMBERS}
        old_fd = signal.set_wakeup_fd(far, warn_on_full_buffer=False)
        watch = threading.Thread(target=self._watch, args=(near,), name="signals", daemon=True)
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

    def _watch(self, near: int) -> None:
        """A thread's: after each signal the main thread has a while to end the process."""
        num, code, deadline = 0, Exit.INTERRUPTED, float("inf")
        while True:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                self.end(code)
            if not select.select([near], [], [], min(left_s, 3600.0))[0]:
                continue
            heard = os.read(near, 64)
            if _OVER in heard:
                return
            for number in heard:
                if number in _NUMBERS:
                    num, code = num + 1, _code_of(number)
            runner = self.runner
            if num == 1:
                deadline = time.monotonic() + (0.0 if runner is None else self.grace_s) + END_S_MAX
            elif num > 1:
                deadline = min(deadline, time.monotonic() + END_NOW_S_MAX)
                if runner is not None:
                    runner.stop_now()


def _code_of(number: int) -> Exit:
    return Exit.INTERRUPTED if number == signal.SIGINT else Exit.TERMINATED


def _first_words(runner: Runner, seen: Snapshot | None, grace_s: float, again: str) -> str:
    num = runner.num_in_flight
    if runner.is_assembling:
        return "stopping: every request is done, and the results are written by the next run of this command"
    if runner.down_s > 0:
        return f"stopping: the endpoint is down, so {counted(num, 'request')} in flight cannot finish"
    if not num:
        return "stopping: nothing is in flight"
    requests, grace = counted(num, "request"), _exactly(grace_s)
    takes_s = None if seen is None else seen.in_flight_s
    if takes_s is None:
        return f"stopping: finishing {requests}, for {grace} at most; {again} to stop now"
    if takes_s > grace_s:
        return (
            f"stopping: finishing {requests} would take {about(takes_s)}; what is not finished in {grace} (--grace) "
            f"runs again with the same command; {again} to stop now"
        )
    return f"stopping: finishing {requests} takes {about(takes_s)}; giving up after {grace}; {again} to stop now"


def _exactly(seconds: float) -> str:
    return f"{seconds:g} s"
