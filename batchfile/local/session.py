"""One run of a file from its options to its ended batch: what `batchfile run` and `batchfile.run` share.

Knows no terminal and no signal.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from batchfile.client.resolve import STORE_FOLDER, check_stage, open_ledger
from batchfile.ledger.base import LOCAL, Ledger
from batchfile.ledger.records import BatchRecord
from batchfile.ledger.status import StatusReader
from batchfile.local import outputs
from batchfile.local.display import counted
from batchfile.local.engines import EngineChoice
from batchfile.local.inputs import Source, inspect, is_added_to
from batchfile.local.output_lock import lock_output
from batchfile.local.progress import Meter, Snapshot
from batchfile.local.run import Opened, RunOptions, open_batch, work
from batchfile.runner.runner import Runner
from batchfile.settings import Settings

Look = Callable[[], Snapshot | None]  # None: nothing to show yet


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What was asked for. None: as the settings say. `output` may be `-`, which is stdout."""

    input: str
    output: str
    store: str | None = None
    stage: str | None = None
    limit: int | None = None
    is_strict: bool = False
    is_restart: bool = False
    max_tokens: int | None = None
    temperature: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observer:
    """Who is told how it goes.

    `say`: a sentence for people. `on_runner`: the runner before it starts. `show`: entered while it works, with what
    looks at the progress, from any thread.
    """

    say: Callable[[str], None]
    on_runner: Callable[[Runner], None]
    show: Callable[[Look], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A batch that exists, and where. `path` None: results go to stdout. `is_kept`: its store outlives the session."""

    job: Job
    ledger: Ledger
    source: Source
    opened: Opened
    path: str | None
    store: str
    is_kept: bool

    def is_added_to(self, ended: BatchRecord) -> bool:
        """Has the input got more lines since it was read?"""
        return ended.reason == "completed" and self.job.limit is None and is_added_to(self.source)


def open_session(
    stack: ExitStack, settings: Settings, job: Job, choice: EngineChoice, say: Callable[[str], None]
) -> Session:
    """Lock the output, and find or make its batch. `stack` keeps the lock and a temporary store until it is left.

    Raises: InvalidFile, OutputTaken, SettingsError, StoreError; then nothing was made.
    """
    if job.stage is not None:
        check_stage(settings.stages, job.stage)
    source = inspect(job.input)
    path = None if job.output == outputs.STDOUT else outputs.check_output(job.output, source.path)
    url = job.store or settings.store
    is_kept = url is not None
    if url is None and path is not None:
        url = str(Path(path).parent / STORE_FOLDER)
    elif url is None:
        url = stack.enter_context(tempfile.TemporaryDirectory(prefix="batchfile-"))
        say(f"results go to stdout at the end; until then they are in {url}, and an interrupted run is lost")
    stack.enter_context(lock_output(path))
    ledger = open_ledger(url, settings)
    options = RunOptions(
        output=path,
        engine=choice.kind,
        model=choice.model,
        stage=job.stage,
        limit=job.limit,
        max_tokens=job.max_tokens or settings.run.max_tokens,
        temperature=settings.run.temperature if job.temperature is None else job.temperature,
        is_strict=job.is_strict,
        is_restart=job.is_restart,
    )
    opened = open_batch(ledger, source, options, before_plan=partial(choice.check, say))
    for note in opened.notes:
        say(note)
    return Session(job=job, ledger=ledger, source=source, opened=opened, path=path, store=url, is_kept=is_kept)


def work_on(session: Session, choice: EngineChoice, observer: Observer, *, grace_s: float) -> BatchRecord | None:
    """Run what is left; the ended batch, or None where it was stopped before. Raises: as `work`."""
    ledger, batch = session.ledger, session.opened.batch
    status = StatusReader(ledger).read(batch.batch_id)
    assert status is not None
    if not session.opened.is_new:
        observer.say(f"continuing {batch.batch_id}: {status.counts.finished:,} of {batch.total:,} requests are done")
    meter = Meter(batch.total, status.counts, status.usage, time.monotonic())
    runners: list[Runner] = []

    def on_runner(runner: Runner) -> None:
        observer.on_runner(runner)
        runners.append(runner)
        observer.say(f"{counted(batch.total, 'request')}; loading {choice.label}")

    with observer.show(lambda: _look(meter, runners[0]) if runners else None):
        runner_id = f"local-{ledger.new_id()[:12]}"
        return work(ledger, batch, choice.noted(observer.say), runner_id, on_runner, grace_s=grace_s)


def _look(meter: Meter, runner: Runner) -> Snapshot:
    seen = meter.look(
        runner.runner_stats,
        time.monotonic(),
        runner.down_s,
        runner.engine_stats(),
        is_loading=runner.info is None or runner.is_building,
    )
    return replace(seen, eta_s=None) if runner.is_stopping else seen  # the rest is not run now


def grace_s_of(settings: Settings, option: float | None) -> float:
    for given in (option, settings.run.grace_s, settings.limits.grace_s):
        if given is not None:
            return given
    return LOCAL.grace_s
