"""Handles Ctrl-C and SIGTERM of `batchfile run`, and makes sure that the process ends."""

import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NoReturn

from batchfile.cli.exits import Exit, end_process
from batchfile.local.display import about, counted
from batchfile.local.progress import Snapshot
from batchfile.local.replicas import Replicas
from batchfile.runner.runner import Runner
from batchfile.signals import StopSignals

END_S_MAX = 15.0  # to commit, to release and to close the engine, after the grace period
END_NOW_S_MAX = 3.0  # the same after a second signal


@dataclass(kw_only=True)
class RunSignals(StopSignals):
    """As `StopSignals`; a third signal, or a second one without an engine, ends the process immediately.

    `say` writes a line for people. `seen`: the latest progress of the runner. `on_end` is called once, before the
    process ends by a signal.
    """

    runner: Runner | Replicas | None = None
    say: Callable[[str], None]
    on_end: Callable[[], None]
    end_s_max: float = END_S_MAX
    end_now_s_max: float = END_NOW_S_MAX
    seen: Snapshot | None = None
    code: Exit | None = None
    _is_unwinding: bool = False
    _is_end_said: bool = False
    _ending: threading.RLock = field(default_factory=threading.RLock)

    def stop(self, number: int, num: int) -> None:
        self.code = code_of(number)
        if num >= 3 or (num == 2 and self._is_unwinding):
            self.end(self.code)
        runner = self.runner
        if runner is None or runner.is_building:
            self._is_unwinding = True
        elif num == 1:
            again = "press Ctrl-C again" if number == signal.SIGINT else "send another signal"
            self.say(_first_words(runner, self.seen, self.grace_s, again))
        else:
            self.say("stopping now")
        super().stop(number, num)

    def say_end(self) -> None:
        with self._ending:
            if not self._is_end_said:
                self._is_end_said = True
                self.on_end()

    def end(self, code: Exit) -> NoReturn:
        """End the process from any thread, even if the main thread hangs."""
        with suppress(OSError, ValueError):  # the reader of stderr has closed it
            self.say_end()
        end_process(code)

    def end_stuck(self, reason: str) -> NoReturn:
        """A call of the engine does not return."""
        with suppress(OSError, ValueError):
            self.say(
                f"{reason}, so this process ends. Finished requests are kept. If one request causes this each time, it "
                "is isolated and fails alone"
            )
        self.end(Exit.STUCK)

    def end_by_force(self, number: int) -> NoReturn:
        self.end(code_of(number))


def code_of(number: int) -> Exit:
    return Exit.INTERRUPTED if number == signal.SIGINT else Exit.TERMINATED


def _first_words(runner: Runner | Replicas, seen: Snapshot | None, grace_s: float, again: str) -> str:
    num = runner.num_in_flight
    if runner.is_assembling and not num:
        return "stopping: every request is done; the next run of this command writes the results"
    if runner.down_s > 0:
        return f"stopping: the endpoint is unavailable, so {counted(num, 'request')} in flight cannot finish"
    if not num:
        return "stopping: nothing is in flight"
    requests, grace = counted(num, "request"), _exactly(grace_s)
    takes_s = None if seen is None else seen.in_flight_s
    if takes_s is None:
        return f"stopping: finishing {requests}, for {grace} at most; {again} to stop now"
    if takes_s > grace_s:
        return (
            f"stopping: finishing {requests} would take {about(takes_s)}; requests that are not finished in {grace} "
            f"(--grace) run again with the same command; {again} to stop now"
        )
    return f"stopping: finishing {requests} takes {about(takes_s)}; giving up after {grace}; {again} to stop now"


def _exactly(seconds: float) -> str:
    return f"{seconds:g} s"
