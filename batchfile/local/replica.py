"""One replica of a local run: an engine in a process of its own, which works on the batches of the run.

`python -m batchfile.local.replica`, started by `replicas.py` with a pickled `ReplicaTask` on standard input.
"""

import os
import pickle
import secrets
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import msgspec
import structlog

from batchfile import logs
from batchfile.engine.base import Engine, EngineStats
from batchfile.engine.open import engine_factory
from batchfile.errors import BatchfileError, SettingsError
from batchfile.local.work import work
from batchfile.machine.child import ChildSignals, Report, Reports, end_with_parent
from batchfile.media.rules import MediaRules
from batchfile.open_ledger import open_ledger
from batchfile.runner.runner import Runner
from batchfile.runner.stats import RunnerStats
from batchfile.settings import load_settings
from batchfile.signals import Interrupted
from batchfile.types import EngineKind

log = structlog.get_logger()

REPORT_S = 0.25
END_S_MAX, END_NOW_S_MAX = 15.0, 3.0  # as of the command
COUNTS = tuple(one.name for one in fields(RunnerStats) if one.type in {int, float})
OK, FAILED, REFUSED = 0, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaTask:
    """`arguments`: of `engine_factory`. `media`: the rules of each batch, by its id."""

    store: str
    kind: EngineKind
    arguments: Mapping[str, Any]
    media: Mapping[str, MediaRules]
    num_replicas: int
    grace_s: float | None
    is_verbose: bool


class ReplicaReport(Report, kw_only=True, omit_defaults=True):
    """What a replica has done since its start; `ended`: a batch; `error`: why it ends, with the name of the class."""

    counts: dict[str, int | float] = msgspec.field(default_factory=dict)
    engine: EngineStats = EngineStats()
    num_in_flight: int = 0
    is_assembling: bool = False
    num_slots: int = 0
    note: str = ""
    ended: str = ""
    error: str = ""
    error_class: str = ""


class _Replica:
    def __init__(self, task: ReplicaTask, reports: Reports, signals: ChildSignals) -> None:
        self._task, self._reports, self._signals = task, reports, signals
        self._runner: Runner | None = None

    def run(self) -> None:
        """Raises: as `work`."""
        task = self._task
        ledger = open_ledger(task.store, load_settings())
        name = f"local-{secrets.token_hex(6)}"  # another one after a restart, so that the leases of this one are free
        threading.Thread(target=self._report, name="report", daemon=True).start()
        work(
            ledger,
            tuple(task.media),
            self._build,
            name,
            self._on_runner,
            lambda batch: self._send(ended=batch.batch_id),
            grace_s=task.grace_s,
            media_rules=lambda batch: task.media[batch.batch_id],
            num_runners=task.num_replicas,
        )

    def _build(self) -> Engine:
        engine = engine_factory(self._task.kind, **self._task.arguments)()
        self._send(is_ready=True, note=engine.info.note, num_slots=engine.info.num_slots)
        return engine

    def _on_runner(self, runner: Runner) -> None:
        self._runner = self._signals.runner = runner

    def _report(self) -> None:
        while True:
            time.sleep(REPORT_S)
            self._send()

    def _send(self, **more: Any) -> None:
        runner = self._runner
        if runner is not None:
            more["counts"] = {name: getattr(runner.runner_stats, name) for name in COUNTS}
            more["engine"] = runner.engine_stats()
            more["num_in_flight"] = runner.num_in_flight
            more["is_assembling"] = runner.is_assembling
        self._reports.send(ReplicaReport(**more))


def main() -> int:
    """0: stopped, or all batches have ended. 1: an error that a restart may fix. 2: a wrong setting."""
    reports = Reports()
    signals = ChildSignals(end_s_max=END_S_MAX, end_now_s_max=END_NOW_S_MAX)
    try:
        with signals.caught():
            task = pickle.load(sys.stdin.buffer)
            logs.for_command(is_verbose=task.is_verbose)
            signals.grace_s = task.grace_s or 0.0
            end_with_parent([signal.SIGTERM, signal.SIGINT])  # the run is over: do not finish what is in flight
            _Replica(task, reports, signals).run()
    except Interrupted:
        return OK
    except BatchfileError as error:
        reports.send(ReplicaReport(error=str(error), error_class=type(error).__name__))
        return REFUSED if isinstance(error, SettingsError) else FAILED
    except Exception as error:
        log.exception("replica.crashed")
        reports.send(ReplicaReport(error=f"unexpected error: {error!r}"))
        return FAILED
    return OK


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # without waiting for the threads of libraries
