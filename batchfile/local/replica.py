"""One replica of a local run: an engine in a process of its own, which works on the batches of the run.

`python -m batchfile.local.replica`, started by `replicas.py` with a pickled `ReplicaTask` on standard input.
"""

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

from batchfile import logs, tracing
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


def _run(task: ReplicaTask, reports: Reports, signals: ChildSignals) -> None:
    """Raises: as `work`."""
    runners: list[Runner] = []

    def send(**more: Any) -> None:
        for runner in runners:
            more["counts"] = {name: getattr(runner.runner_stats, name) for name in COUNTS}
            more |= {"engine": runner.engine_stats(), "num_in_flight": runner.num_in_flight}
            more["is_assembling"] = runner.is_assembling
        reports.send(ReplicaReport(**more))

    def report() -> None:
        while True:
            time.sleep(REPORT_S)
            send()

    def build() -> Engine:
        engine = engine_factory(task.kind, **task.arguments)()
        send(is_ready=True, note=engine.info.note, num_slots=engine.info.num_slots)
        return engine

    def on_runner(runner: Runner) -> None:
        signals.runner = runner
        runners.append(runner)

    threading.Thread(target=report, name="report", daemon=True).start()
    work(
        open_ledger(task.store, load_settings()),
        tuple(task.media),
        build,
        f"local-{secrets.token_hex(6)}",  # another one after a restart, so that the leases of this one are free
        on_runner,
        lambda batch: send(ended=batch.batch_id),
        grace_s=task.grace_s,
        media_rules=lambda batch: task.media[batch.batch_id],
        num_runners=task.num_replicas,
    )


def main() -> int:
    """0: stopped, or all batches have ended. 1: an error that a restart may fix. 2: a wrong setting."""
    reports = Reports()
    signals = ChildSignals(end_s_max=END_S_MAX, end_now_s_max=END_NOW_S_MAX)
    try:
        with signals.caught():
            try:
                task = pickle.load(sys.stdin.buffer)
            except (EOFError, pickle.UnpicklingError):  # the run ended meanwhile
                return OK
            logs.for_command(is_verbose=task.is_verbose)
            tracing.start("batchfile-run")
            signals.grace_s = task.grace_s or 0.0
            end_with_parent([signal.SIGTERM, signal.SIGINT])  # the run is over: do not finish what is in flight
            _run(task, reports, signals)
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
    sys.exit(main())
