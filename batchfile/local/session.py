"""Runs a file from its options to its ended batch, for `batchfile run` and `batchfile.run`.

Does not end the process and sets no signal handlers.
"""

import os
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NoReturn

from batchfile import logs
from batchfile.errors import BatchfileError, EngineDead, SettingsError
from batchfile.ledger.base import LOCAL, Ledger
from batchfile.ledger.records import BatchRecord
from batchfile.ledger.status import StatusReader
from batchfile.local import outputs
from batchfile.local.display import Progress, counted
from batchfile.local.display import say as say_on_stderr
from batchfile.local.engines import EngineChoice, choose_engine
from batchfile.local.inputs import Source, inspect, is_added_to
from batchfile.local.options import STDOUT, Dtype, RunOptions
from batchfile.local.progress import Meter, Snapshot
from batchfile.local.receipt import Receipt
from batchfile.local.run import Opened, open_batch, work
from batchfile.local.tables import prepared, with_contents
from batchfile.open_ledger import STORE_FOLDER, open_ledger
from batchfile.routing import check_stage
from batchfile.runner.runner import Runner
from batchfile.settings import Settings, load_settings
from batchfile.types import EngineKind, Task

Look = Callable[[], Snapshot | None]  # None: nothing to show yet


@dataclass(frozen=True, slots=True, kw_only=True)
class Observer:
    """Callbacks for messages and progress.

    `say`: prints a message for people. `on_runner`: gets the runner before it starts. `show`: a context manager around
    the work; its argument returns the progress, from any thread.
    """

    say: Callable[[str], None]
    on_runner: Callable[[Runner], None]
    show: Callable[[Look], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """An existing batch and its store. `path` None: results go to stdout. `is_kept`: its store outlives the session.

    `options`: completed from the settings.
    """

    options: RunOptions
    ledger: Ledger
    source: Source
    opened: Opened
    path: str | None
    store: str
    is_kept: bool

    def is_added_to(self, ended: BatchRecord) -> bool:
        """Were lines added to the input since it was read?"""
        return ended.reason == "completed" and self.options.limit is None and is_added_to(self.source)


def open_session(
    stack: ExitStack, settings: Settings, options: RunOptions, choice: EngineChoice, say: Callable[[str], None]
) -> Session:
    """Lock the output, and find or create its batch. `stack` keeps the lock and a temporary store until it is closed.

    Raises: InvalidFile, OutputTaken, SettingsError, StoreError; then nothing was created.
    """
    if options.stage is not None:
        check_stage(settings.stages, options.stage)
    options = with_contents(options)
    source = prepared(inspect(options.input), options)
    path = None if options.output is None else outputs.check_output(options.output, source.path, source.table)
    url = options.store or settings.store
    is_kept = url is not None
    if url is None and path is not None:
        url = str(Path(path).parent / STORE_FOLDER)
    elif url is None:
        url = stack.enter_context(tempfile.TemporaryDirectory(prefix="batchfile-"))
        say(f"results are written to stdout at the end; until then they are in {url}. This run cannot be resumed")
    stack.enter_context(outputs.lock_output(path))
    ledger = open_ledger(url, settings)
    options = replace(
        options,
        output=path,
        engine=choice.kind,
        model=choice.model,
        max_tokens=options.max_tokens or settings.run.max_tokens,
        temperature=settings.run.temperature if options.temperature is None else options.temperature,
    )
    opened = open_batch(ledger, source, options, before_plan=partial(choice.check, say))
    for note in opened.notes:
        say(note)
    return Session(options=options, ledger=ledger, source=source, opened=opened, path=path, store=url, is_kept=is_kept)


def work_on(session: Session, choice: EngineChoice, observer: Observer, *, grace_s: float) -> BatchRecord | None:
    """Run the rest; returns the ended batch, or None where it was stopped before. Raises: as `work`."""
    ledger, batch = session.ledger, session.opened.batch
    found = StatusReader(ledger).read(batch.batch_id)
    assert found is not None
    status = found.status
    if not session.opened.is_new:
        observer.say(f"resuming {batch.batch_id}: {status.counts.finished:,} of {batch.total:,} requests are done")
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
    return replace(seen, eta_s=None) if runner.is_stopping else seen  # the rest does not run now


def grace_s_of(settings: Settings, option: float | None) -> float:
    for given in (option, settings.run.grace_s, settings.limits.grace_s):
        if given is not None:
            return given
    return LOCAL.grace_s


def run(
    input: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    model: str | None = None,
    engine: EngineKind | None = None,
    base_url: str | None = None,
    wait_for_endpoint: bool = False,
    stage: str | None = None,
    limit: int | None = None,
    sample: int | None = None,
    seed: int | None = None,
    prompt: str | None = None,
    prompt_file: str | None = None,
    system: str | None = None,
    choices: str | None = None,
    schema: str | None = None,
    into: str | None = None,
    id_column: str | None = None,
    raw: bool = False,
    strict: bool = False,
    restart: bool = False,
    max_tokens: int | None = None,
    temperature: float | None = None,
    max_model_len: int | None = None,
    max_num_seqs: int | None = None,
    task: Task = "generate",
    dtype: Dtype | None = None,
    tool_parser: str | None = None,
    reasoning_parser: str | None = None,
    grace_s: float | None = None,
    store: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Receipt:
    """Answer every request of the file `input` and write one result for each to `output`, in input order.

    The options are those of `batchfile run` (docs/cli.md); missing ones are taken from the settings. The same call
    resumes a run that was stopped, for any reason, and runs lines that were added at the end of `input`; once all is
    done it returns the same receipt. Failed requests do not raise: see `receipt.counts` and `receipt.errors`. Ctrl-C
    finishes the requests in flight, for up to `grace_s` seconds, and raises KeyboardInterrupt; a second one stops now,
    a third does not wait. `progress`: show it on stderr.

    Raises: InvalidFile where the input cannot be used (with `strict` also for one line that cannot run); SettingsError
    for a wrong option, model or endpoint; OutputTaken where the output belongs to another run; EngineDead; StoreError.

    >>> receipt = batchfile.run("requests.jsonl", "results.jsonl", engine="echo", progress=False)
    >>> receipt.counts.succeeded, receipt.is_all_succeeded
    (2, True)
    """
    given = {**locals(), "input": os.fspath(input), "output": os.fspath(output), "store": store and os.fspath(store)}
    given.pop("progress")  # the rest are the fields of RunOptions
    if given["output"] == STDOUT:
        raise SettingsError("output: must be a path; only the command can write to stdout")
    options = RunOptions(**given)
    logs.for_library()
    settings = load_settings()
    choice = choose_engine(settings, options)
    say: Callable[[str], None] = say_on_stderr if progress else lambda text: None
    with ExitStack() as stack:
        session = open_session(stack, settings, options, choice, say)
        assert session.path is not None
        batch: BatchRecord | None = session.opened.batch
        if batch is not None and batch.state != "ended":
            worker = _Worker(say)
            observer = Observer(say=say, on_runner=worker.on_runner, show=_shown if progress else nullcontext)
            grace_s = grace_s_of(settings, options.grace_s)
            batch = worker.run(lambda: work_on(session, choice, observer, grace_s=grace_s))
        if batch is None:
            raise BatchfileError("the run was stopped before its end; make the same call again to resume it")
        receipt = outputs.export(session.ledger, batch, session.path)
        if session.is_added_to(batch):
            say(f"lines were added to {options.input} while it ran; the same call runs them")
        return receipt


class _Worker:
    """Runs the work in a separate thread: Ctrl-C interrupts the waiting caller, which then stops the runner.

    It needs no signal handlers, so it works in a notebook and in any thread.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._runner: Runner | None = None
        self._how_to_stop: Callable[[Runner], None] | None = None
        self._ended: Future[BatchRecord | None] = Future()

    def on_runner(self, runner: Runner) -> None:
        self._runner = runner
        runner.on_stuck = self._end_stuck
        if self._how_to_stop is not None:
            self._how_to_stop(runner)

    def run(self, work: Callable[[], BatchRecord | None]) -> BatchRecord | None:
        """Returns or raises what `work` does. Raises: KeyboardInterrupt."""
        threading.Thread(target=self._work, args=(work,), name="batchfile-run", daemon=True).start()
        try:
            return self._ended.result()
        except KeyboardInterrupt:
            self._stop(Runner.stop, "stopping: finishing the requests in flight; interrupt again to stop now")
        try:
            self._ended.result()
        except KeyboardInterrupt:
            self._stop(Runner.stop_now, "stopping now")
            self._ended.result()
        raise KeyboardInterrupt

    def _work(self, work: Callable[[], BatchRecord | None]) -> None:
        with suppress(InvalidStateError):  # the engine was stuck, and the caller has its error already
            try:
                self._ended.set_result(work())
            except BaseException as error:  # noqa: BLE001 the caller raises it
                self._ended.set_exception(error)

    def _stop(self, how: Callable[[Runner], None], text: str) -> None:
        self._say(text)
        self._how_to_stop = how
        if self._runner is not None:
            how(self._runner)

    def _end_stuck(self, reason: str) -> NoReturn:
        """The engine's call may never return: its thread is abandoned, and the caller gets an error."""
        self._ended.set_exception(
            EngineDead(f"{reason}; finished requests are kept: restart this process and make the same call again")
        )
        raise SystemExit  # ends only the watchdog's thread


def _shown(look: Look) -> AbstractContextManager[object]:
    return Progress(look, is_json=False)
