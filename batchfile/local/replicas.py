"""Runs the batches of local runs with several engines, each in a process of its own on the same store."""

import logging
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import NoReturn

import msgspec
import structlog

from batchfile import errors
from batchfile.child_env import python_path
from batchfile.engine.base import EngineStats
from batchfile.errors import EngineDead, SettingsError, StoreUnavailable
from batchfile.ledger.base import Ledger
from batchfile.ledger.batches import read_batch
from batchfile.ledger.records import BatchRecord
from batchfile.local.engines import EngineChoice
from batchfile.local.past_runs import remember_speed
from batchfile.local.replica import COUNTS, ReplicaReport, ReplicaTask
from batchfile.machine.layout import Layout, environments
from batchfile.machine.supervisor import Slot, SlotPlan, Supervisor
from batchfile.media.rules import MediaRules
from batchfile.runner.stats import RunnerStats
from batchfile.runner.watchdog import end_stuck

log = structlog.get_logger()

COMMAND = (sys.executable, "-P", "-m", "batchfile.local.replica")
_ENGINE_COUNTS = tuple(one.name for one in fields(EngineStats) if one.type is int)


class Replicas:
    """For the display and the signals of a run as its `Runner`, of several processes together.

    A replica that dies is started again, and the others take over its work. `on_ended`: called in another thread for
    each batch as it ends; meanwhile, no other one ends.
    """

    def __init__(
        self,
        ledger: Ledger,
        layout: Layout,
        task: ReplicaTask,
        say: Callable[[str], None],
        on_ended: Callable[[BatchRecord], None],
    ) -> None:
        self.on_stuck: Callable[[str], NoReturn] = end_stuck  # a stuck replica ends by itself
        self.is_stopping = False
        self.down_s = 0.0
        self._ledger, self._say, self._on_ended = ledger, say, on_ended
        self._left = list(task.media)
        try:
            told = pickle.dumps(task)
        except Exception as error:
            raise SettingsError(f"engine_arg: an engine in another process cannot get this value: {error}") from error
        plans = [
            SlotPlan(command=COMMAND, environ={"PYTHONPATH": python_path(), **devices}, stdin=told)
            for devices in environments(layout.replicas, os.environ)
        ]
        self._supervisor = Supervisor(
            plans, task.grace_s or 0.0, gives_up=True, on_report=self._hear, on_exit=self._on_exit
        )
        self._ending = threading.RLock()  # held while a batch ends
        self._reports: dict[tuple[int, int], ReplicaReport] = {}  # the last of each process
        self._ready: set[int] = set()  # the slots of engines that are loaded
        self._slots: dict[int, int] = {}  # how many requests the engine of each slot runs at once
        self._ready_at: float | None = None
        self._began_at = time.monotonic()
        self._said: set[str] = set()
        self._is_stopping_now = False
        self._failure: BaseException | None = None
        self._errors: dict[int, str] = {}  # what each slot's process reported before it ended
        self._last_error = ""

    def run(self) -> None:
        """Raises: EngineDead if no replica can work; what a replica raised, if the others would too."""
        self._supervisor.reconcile()
        with self._ending:
            for batch_id in list(self._left):
                self._end(batch_id)
        if self._failure is not None:
            raise self._failure
        if self._left and not self.is_stopping:
            raise EngineDead(f"no engine could be kept running: {self._last_error}")

    def stop(self) -> None:
        if not self.is_stopping:
            self.is_stopping = True
            self._supervisor.stop()

    def stop_now(self) -> None:
        self.stop()
        if not self._is_stopping_now:
            self._is_stopping_now = True
            self._supervisor.stop()

    @property
    def is_building(self) -> bool:
        """No engine is ready."""
        return not (self._ready or self.is_stopping or not self._left)

    @property
    def is_assembling(self) -> bool:
        return any(report.is_assembling for report in self._all())

    @property
    def num_in_flight(self) -> int:
        return sum(report.num_in_flight for report in self._all())

    @property
    def runner_stats(self) -> RunnerStats:
        """Of all replicas together."""
        counts, stats = [report.counts for report in self._all()], RunnerStats(engine_ready_at=self._ready_at)
        for name in COUNTS:
            setattr(stats, name, sum(one.get(name, 0) for one in counts))
        stats.busy_s = max((one.get("busy_s", 0.0) for one in counts), default=0.0)
        return stats

    def engine_stats(self) -> EngineStats:
        found = [report.engine for report in self._all()]
        return EngineStats(**{name: sum(getattr(one, name) for one in found) for name in _ENGINE_COUNTS})

    def _all(self) -> list[ReplicaReport]:
        return list(self._reports.values())

    def _hear(self, number: int, line: bytes) -> None:
        try:
            report = msgspec.json.decode(line, type=ReplicaReport)
        except msgspec.DecodeError:
            return  # something that a library has printed
        try:
            self._take(number, report)
        except Exception as error:  # noqa: BLE001 `run` raises it
            self._fail(error)

    def _take(self, number: int, report: ReplicaReport) -> None:
        if report.counts:
            self._reports[number, self._supervisor.slots[number].num_starts] = report
        if report.is_ready:
            self._ready_at = self._ready_at or time.monotonic()
            self._ready.add(number)
            self._slots[number] = report.num_slots
            if report.note and report.note not in self._said:
                self._say(report.note)
            self._said.add(report.note)
            if len(self._ready) == len(self._supervisor.slots) > 1:
                self._say(f"all {len(self._ready)} replicas are ready")
        if report.ended:
            self._end(report.ended)
        if report.error:
            self._errors[number] = report.error
            kind = getattr(errors, report.error_class or EngineDead.__name__)
            # A wrong setting is one only if no engine was ever loaded; later it may be memory that is not free yet.
            may_pass = {EngineDead, StoreUnavailable} | (set() if self._ready_at is None else {SettingsError})
            if kind not in may_pass:
                self._fail(kind(report.error))

    def _end(self, batch_id: str) -> None:
        with self._ending:
            batch = read_batch(self._ledger, batch_id) if batch_id in self._left else None
            if batch is None or batch.state != "ended":
                return
            self._left.remove(batch_id)
            startup_s = (self._ready_at or self._began_at) - self._began_at
            speed = remember_speed(self._ledger, batch_id, startup_s, sum(self._slots.values()), self.runner_stats)
            self._on_ended(speed or batch)
            if not self._left:
                self._supervisor.stop()  # replicas that look for more would notice it only after a while

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self.stop_now()

    def _on_exit(self, slot: Slot, code: int) -> None:
        self._ready.discard(slot.number)
        key = slot.number, slot.num_starts
        if key in self._reports:
            engine = replace(self._reports[key].engine, num_running=0, num_waiting=0)
            self._reports[key] = ReplicaReport(counts=self._reports[key].counts, engine=engine)
        if code == 0 or self.is_stopping or self._failure is not None or not self._left:
            return
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        if code == os.EX_TEMPFAIL:  # of `end_stuck`
            how += " because an engine call did not return"
        if error := self._errors.pop(slot.number, ""):
            how += f": {error}"
        self._last_error = f"replica {slot.number + 1} {how}"
        then = "it is started again" if slot.code is None else "it is given up"
        others = ", and the others take over its requests" if len(self._supervisor.slots) > 1 else ""
        self._say(f"{self._last_error}; {then}{others}")


def work_apart(
    ledger: Ledger,
    batch_ids: Sequence[str],
    choice: EngineChoice,
    layout: Layout,
    on_runner: Callable[[Replicas], None],
    on_ended: Callable[[BatchRecord], None],
    say: Callable[[str], None],
    *,
    grace_s: float,
    media: Mapping[str, MediaRules],
) -> None:
    """As `work`, with the replicas of the layout. `media`: the rules of each batch."""
    task = ReplicaTask(
        store=ledger.store.url,
        kind=choice.kind,
        arguments={**choice.arguments, "tensor_parallel_size": layout.tensor_parallel_size},
        media={batch_id: media[batch_id] for batch_id in batch_ids},
        num_replicas=len(layout.replicas),
        grace_s=grace_s,
        is_verbose=log.is_enabled_for(logging.INFO),
    )
    replicas = Replicas(ledger, layout, task, say, on_ended)
    on_runner(replicas)
    replicas.run()
