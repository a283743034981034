"""What a process of the supervisor does with it: it reports on standard output, and stops with the supervisor."""

import os
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

import msgspec
import structlog

from batchfile.child_env import write_all
from batchfile.signals import StopSignals

log = structlog.get_logger()

# After the grace period: to commit, release and close the engine. Less than the supervisor's margin.
END_S_MAX = 45.0
END_NOW_S_MAX = 15.0  # the same after a second signal


class Report(msgspec.Struct, kw_only=True, omit_defaults=True):
    """`is_ready`: the engine is loaded."""

    is_ready: bool = False


def is_ready(line: bytes) -> bool:
    """Does this line report that?"""
    try:
        return msgspec.json.decode(line, type=Report).is_ready
    except msgspec.DecodeError:
        return False


class Reports:
    """Takes standard output over; what libraries print goes to standard error."""

    def __init__(self) -> None:
        self._fd = os.dup(1)
        self._lock = threading.Lock()
        os.dup2(2, 1)

    def send(self, report: Report) -> None:
        with self._lock, suppress(BrokenPipeError):  # the supervisor has ended
            write_all(self._fd, msgspec.json.encode(report) + b"\n")


@dataclass(kw_only=True)
class ChildSignals(StopSignals):
    end_s_max: float = END_S_MAX
    end_now_s_max: float = END_NOW_S_MAX

    def end_by_force(self, number: int) -> NoReturn:
        log.error("runner.ended_by_force", reason="the main thread did not respond to the signal", signal=number)
        os._exit(128 + number)


def end_with_parent(numbers: Sequence[signal.Signals]) -> None:
    """Send these signals to this process when its supervisor ends, which keeps standard input open until then."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        log.warning("supervisor.gone")
        for number in numbers:
            os.kill(os.getpid(), number)

    threading.Thread(target=wait, name="parent", daemon=True).start()
