"""Ctrl-C and SIGTERM while a file runs: what the first does, what the second does, and that the process does end."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import NoReturn

from batchfile.cli.exits import Exit, end_process
from batchfile.local.display import about, counted
from batchfile.local.progress import Snapshot
from batchfile.runner.runner import Runner
from batchfile.signals import hearing

END_S_MAX = 15.0  # to commit, to release and to close the engine, once the grace is over
END_NOW_S_MAX = 3.0  # the same after a second signal


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

    def end_stuck(self, reason: str) -> NoReturn:
        """A call of the engine does not return."""
        with suppress(OSError, ValueError):
            self.say(
                f"{reason}, so this process ends; what had finished is kept, and a request that does this each "
                "time it runs is found and fails alone"
            )
        self.end(Exit.STUCK)

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Call it in the main thread."""
        with hearing(self.handle, self._patience_s, lambda number: self.end(_code_of(number))):
            yield

    def _patience_s(self, num: int) -> float:
        runner = self.runner
        if num == 1:
            return (0.0 if runner is None else self.grace_s) + END_S_MAX
        if runner is not None:
            runner.stop_now()
        return END_NOW_S_MAX


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
