"""Runs files from their options to their ended batches, for `batchfile run` and `batchfile.run`. Knows no signals."""

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from batchfile.errors import SettingsError
from batchfile.ledger.base import LOCAL, Ledger
from batchfile.ledger.batch_status import BatchStatus
from batchfile.ledger.records import BatchRecord
from batchfile.ledger.status import StatusReader
from batchfile.local import outputs
from batchfile.local.display import counted
from batchfile.local.engines import EngineChoice
from batchfile.local.inputs import Source, is_added_to
from batchfile.local.inputs import opened as opened_input
from batchfile.local.media_files import media_rules
from batchfile.local.options import RunOptions
from batchfile.local.past_runs import expected_lengths
from batchfile.local.progress import Meter, Snapshot, cost_usd
from batchfile.local.replicas import Replicas, work_apart
from batchfile.local.run import Opened, open_batch
from batchfile.local.tables import prepared, with_contents
from batchfile.local.work import unfinished, work
from batchfile.media.rules import MediaLimits, MediaRules
from batchfile.open_ledger import STORE_FOLDER, open_ledger
from batchfile.routing import check_stage
from batchfile.runner.runner import Runner
from batchfile.settings import Settings
from batchfile.types import TENANT, Counts, Usage

MEMORY = "memory:"
Look = Callable[[], Snapshot | None]  # None: nothing to show yet


@dataclass(frozen=True, slots=True, kw_only=True)
class Observer:
    """Callbacks for messages and progress.

    `say`: prints a message for people. `on_runner`: gets the runner before it starts. `show`: a context manager around
    the work; its argument returns the progress, from any thread.
    """

    say: Callable[[str], None]
    on_runner: Callable[[Runner | Replicas], None]
    show: Callable[[Look], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """An existing batch. `options`: completed from the settings. Their output is an absolute path, and their store is
    None if it does not outlive the session.
    """

    options: RunOptions
    ledger: Ledger
    source: Source
    opened: Opened
    media_rules: MediaRules

    @property
    def noun(self) -> str:
        return "request" if self.source.table is None else "row"

    def is_added_to(self, reason: str | None) -> bool:
        """Were lines added to the input since it was read? `reason`: why its batch ended."""
        return reason == "completed" and self.source.limit is None and is_added_to(self.source)


def open_session(
    stack: ExitStack,
    settings: Settings,
    options: RunOptions,
    choice: EngineChoice,
    say: Callable[[str], None],
    source: Source | None = None,
    *,
    shares_results: bool = False,
) -> Session:
    """Lock the output, and find or create its batch. `stack` keeps the lock and a temporary store until it is closed.

    `source` None: the input of the options, with their prompt. `shares_results`: as of `open_batch`.
    Raises: InvalidFile, OutputTaken, SettingsError, StoreError; then nothing was created.
    """
    options = completed(options, settings, choice)
    if options.media_folder is not None and not Path(options.media_folder).is_dir():
        raise SettingsError(f"media_folder: {options.media_folder}: no such directory")
    if source is None:
        source = prepared(stack.enter_context(opened_input(options.input)), options)
    if source.table is not None and source.table.prompt.is_constant:
        say("the prompt uses no column, so every row gets the same one; insert a column as {{ NAME }}")
    path = None if options.output is None else outputs.check_output(options.output, source.path, source.table)
    url, is_temporary = options.store or settings.store, False
    if url is None and path is not None:
        url = str(Path(path).parent / STORE_FOLDER)
    elif url is None:
        url, is_temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="batchfile-")), True
    stack.enter_context(outputs.lock_output(path))
    options = replace(options, output=path, store=None if is_temporary else url)
    ledger, check, limits = open_ledger(url, settings), partial(choice.check, say), limits_of(settings)
    session = begin(ledger, source, options, choice, check, say, limits=limits, shares_results=shares_results)
    if is_temporary and session.opened.batch.total > 1:
        say(f"results are written to stdout at the end; until then they are in {url}. This run cannot be resumed")
    return session


def begin(
    ledger: Ledger,
    source: Source,
    options: RunOptions,
    choice: EngineChoice,
    check: Callable[[], object],
    say: Callable[[str], None],
    *,
    limits: MediaLimits,
    shares_results: bool = False,
) -> Session:
    """Find or create the batch of the output, which is locked. `check`, `Raises`: as `before_plan` of `open_batch`."""
    rules = media_rules(options, source, limits)

    def before_plan() -> None:
        check()
        if not choice.layout().is_all and ledger.store.url == MEMORY:
            raise SettingsError(
                "--store memory: is in one process, and each engine has its own; use a directory, or --replicas 1 with "
                "all GPUs"
            )

    opened = open_batch(
        ledger,
        source,
        options,
        before_plan=before_plan,
        engine=choice.identity,
        rules=rules,
        shares_results=shares_results,
    )
    for note in opened.notes:
        say(note)
    return Session(options=options, ledger=ledger, source=source, opened=opened, media_rules=rules)


def limits_of(settings: Settings) -> MediaLimits:
    access = settings.media.get(TENANT)
    return MediaLimits() if access is None else access.limits


def completed(options: RunOptions, settings: Settings, choice: EngineChoice) -> RunOptions:
    """The options with what the settings and the files that they name say. Raises: SettingsError."""
    if options.stage is not None:
        check_stage(settings.stages, options.stage)
    return replace(
        with_contents(options),
        engine=choice.kind,
        model=choice.model,
        max_tokens=options.max_tokens or settings.run.max_tokens,
        temperature=settings.run.temperature if options.temperature is None else options.temperature,
        gpu_hour=settings.run.gpu_hour if options.gpu_hour is None else options.gpu_hour,
    )


def work_on(session: Session, choice: EngineChoice, observer: Observer, *, grace_s: float) -> BatchRecord | None:
    """Run the rest; returns the ended batch, or None where it was stopped before. Raises: as `work`."""
    ended: list[BatchRecord] = []
    if not session.opened.is_new:
        batch, counts = session.opened.batch, _progress_of(session).counts
        observer.say(f"resuming {batch.batch_id}: {counts.finished:,} of {batch.total:,} {session.noun}s are done")
    work_on_all([session], choice, observer, ended.append, grace_s=grace_s)
    return ended[0] if ended else None


def work_on_all(
    sessions: Sequence[Session],
    choice: EngineChoice,
    observer: Observer,
    on_ended: Callable[[BatchRecord], None],
    *,
    grace_s: float,
) -> None:
    """Run the rest of sessions of one ledger, in their order. `on_ended` and `Raises`: as of `work`."""
    ledger = sessions[0].ledger
    batches = [session.opened.batch for session in sessions]
    left = [batch for batch in batches if batch.state != "ended"]
    total = sum(batch.total for batch in batches)
    before = [_progress_of(session) for session in sessions]
    counts = sum((status.counts for status in before), Counts())
    meter = Meter(total, counts, sum((status.usage for status in before), Usage()), time.monotonic())
    gpu_s = sum(status.gpu_s for status in before)
    runners: list[Runner | Replicas] = []
    ended = {batch.batch_id for batch in batches if batch.state == "ended"}
    rules = {session.opened.batch.batch_id: session.media_rules for session in sessions}

    def rules_of(batch: BatchRecord) -> MediaRules:
        return rules[batch.batch_id]

    def on_runner(runner: Runner | Replicas) -> None:
        observer.on_runner(runner)
        runners.append(runner)
        files = f" in {counted(len(batches), 'file')}" if len(batches) > 1 else ""
        observer.say(f"{counted(total, sessions[0].noun)}{files}; loading {choice.label}")

    def end(batch: BatchRecord) -> None:
        on_ended(batch)
        ended.add(batch.batch_id)

    def look() -> Snapshot | None:
        if not runners:
            return None
        seen = _look(meter, runners[0])
        cost = cost_usd(gpu_s + runners[0].runner_stats.gpu_s, sessions[0].options.gpu_hour)
        return replace(seen, cost_usd=cost, num_files=len(batches), num_files_done=len(ended))

    with observer.show(look):
        runner_id = f"local-{ledger.new_id()[:12]}"
        found = unfinished(ledger, left, runner_id, end)
        layout = choice.layout().enough_for(total - counts.finished) if found else None
        for note in () if layout is None else layout.notes:
            observer.say(note)
        if layout is not None:
            choice = choice.for_requests(expected_lengths(choice.model, batches, sessions[0].options.max_tokens))
        if layout is not None and layout.is_all:
            factory = choice.noted(observer.say)
            work(ledger, found, factory, runner_id, on_runner, end, media_rules=rules_of, grace_s=grace_s)
        elif layout is not None:
            work_apart(ledger, found, choice, layout, on_runner, end, observer.say, grace_s=grace_s, media=rules)


def _progress_of(session: Session) -> BatchStatus:
    found = StatusReader(session.ledger).read(session.opened.batch.batch_id)
    assert found is not None
    return found.status


def _look(meter: Meter, runner: Runner | Replicas) -> Snapshot:
    seen = meter.look(
        runner.runner_stats,
        time.monotonic(),
        runner.down_s,
        runner.engine_stats(),
        is_loading=runner.is_building,
    )
    return replace(seen, eta_s=None) if runner.is_stopping else seen  # the rest does not run now


def grace_s_of(settings: Settings, option: float | None) -> float:
    for given in (option, settings.run.grace_s, settings.limits.grace_s):
        if given is not None:
            return given
    return LOCAL.grace_s
