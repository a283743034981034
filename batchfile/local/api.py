"""`batchfile.run`: the command `batchfile run` as a function. Does not end the process and sets no signal handlers."""

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import replace
from operator import methodcaller
from typing import NoReturn, TypeVar, Unpack, cast, overload

from batchfile import logs
from batchfile.errors import BatchfileError, EngineDead, SettingsError
from batchfile.ledger.records import BatchRecord
from batchfile.local import outputs
from batchfile.local.display import Progress
from batchfile.local.display import say as say_on_stderr
from batchfile.local.engines import EngineChoice, choose_engine
from batchfile.local.folder import plan_folder
from batchfile.local.keywords import saying, worded_for_python
from batchfile.local.options import STDOUT, RunArguments, RunOptions, check_arguments
from batchfile.local.receipt import Receipt
from batchfile.local.replicas import Replicas
from batchfile.local.session import Look, Observer, Session, grace_s_of, open_session, work_on
from batchfile.local.several import FileRun, open_files, work_on_files
from batchfile.local.summary import full_summary, summary
from batchfile.runner.runner import Runner
from batchfile.settings import Settings, load_settings

T = TypeVar("T")
AnyPath = str | os.PathLike[str]

# How soon Ctrl-C is noticed where a library has installed its own handler of the signal, as polars does: a system call
# that waits is then restarted, instead of returning to Python.
WAKE_S = 0.2
_STOPPED = "the run was stopped before its end; make the same call again to resume it"


@overload
def run(  # type: ignore[overload-overlap]  # a str is an Iterable[str] too
    input: AnyPath,
    output: AnyPath,
    *,
    store: AnyPath | None = None,
    progress: bool = True,
    **options: Unpack[RunArguments],
) -> Receipt: ...
@overload
def run(
    input: Iterable[AnyPath],
    output: AnyPath,
    *,
    store: AnyPath | None = None,
    progress: bool = True,
    **options: Unpack[RunArguments],
) -> list[Receipt]: ...
def run(
    input: AnyPath | Iterable[AnyPath],
    output: AnyPath,
    *,
    store: AnyPath | None = None,
    progress: bool = True,
    **options: Unpack[RunArguments],
) -> Receipt | list[Receipt]:
    """Answer every request of the file `input` and write one result for each to `output`, in input order.

    `input`: a path or an address (https://…, s3://…). A list of paths, addresses, folders and patterns gives a list of
    receipts: `output` is then a folder, and one engine runs all files. A file of the list that cannot be used does not
    stop the others; the error is raised once they are done, with those of other files as its notes.

    The options are those of `batchfile run` (docs/cli.md); missing ones are taken from the settings. The same call
    resumes a run that was stopped, for any reason, and runs lines that were added at the end of `input`; once all is
    done it returns the same receipt. Failed requests do not raise: see `receipt.counts` and `receipt.errors`. Ctrl-C
    finishes the requests in flight, for up to `grace_s` seconds, and raises KeyboardInterrupt; a second one stops now,
    a third does not wait. `progress`: show it, and how the run ended: in a notebook in the cell, elsewhere on stderr.

    Raises: InvalidFile where the input cannot be used (with `strict` also for one line that cannot run); SettingsError
    for a wrong option, model or endpoint; OutputTaken where the output belongs to another run; EngineDead; StoreError.

    >>> receipt = batchfile.run("requests.jsonl", "results.jsonl", engine="echo", progress=False)
    >>> receipt.counts.succeeded, receipt.is_all_succeeded
    (2, True)
    """
    check_arguments("run", RunArguments, options)
    given = RunOptions(output=os.fspath(output), store=None if store is None else os.fspath(store), **options)
    if given.output == STDOUT:
        raise SettingsError("output: must be a path; only the command can write to stdout")
    logs.for_library()
    say: Callable[[str], None] = saying(say_on_stderr) if progress else lambda text: None
    with worded_for_python():
        if isinstance(input, str | os.PathLike):
            return _run_file(replace(given, input=os.fspath(input)), say, is_shown=progress)
        return _run_files([os.fspath(name) for name in input], given, say, is_shown=progress)


def _run_file(options: RunOptions, say: Callable[[str], None], *, is_shown: bool) -> Receipt:
    settings = load_settings()
    choice = choose_engine(settings, options)
    with ExitStack() as stack:
        session = open_session(stack, settings, options, choice, say)
        assert session.options.output is not None
        batch = end_batch(session, settings, choice, say, is_shown=is_shown)
        receipt = outputs.export(session.ledger, batch, session.options.output, say, gpu_hour=session.options.gpu_hour)
        for text in full_summary(receipt, outputs.error_column(batch)):
            say(text)
        if session.is_added_to(batch.reason):
            say(f"lines were added to {options.input} while it ran; the same call runs them")
        return receipt


def end_batch(
    session: Session, settings: Settings, choice: EngineChoice, say: Callable[[str], None], *, is_shown: bool
) -> BatchRecord:
    """Run what is left of the batch. Raises: KeyboardInterrupt; BatchfileError where another process stopped it."""
    batch: BatchRecord | None = session.opened.batch
    if batch is not None and batch.state != "ended":
        worker, observer = _watched(say, is_shown=is_shown)
        grace_s = grace_s_of(settings, session.options.grace_s)
        batch = worker.run(lambda: work_on(session, choice, observer, grace_s=grace_s))
    if batch is None:
        raise BatchfileError(_STOPPED)
    return batch


def _run_files(inputs: list[str], options: RunOptions, say: Callable[[str], None], *, is_shown: bool) -> list[Receipt]:
    assert options.output is not None
    settings = load_settings()
    choice = choose_engine(settings, options)
    plan = plan_folder(inputs, options.output, restart=options.restart, is_rows=options.row_option is not None)
    for note in plan.notes:
        say(note)
    with ExitStack() as stack:
        files = open_files(stack, settings, options, choice, plan, say)
        worker, observer = _watched(say, is_shown=is_shown)
        grace_s = grace_s_of(settings, options.grace_s)
        worker.run(lambda: work_on_files(files, choice, observer, grace_s=grace_s))
    for file in files:
        if file.receipt is not None and file.session is not None:
            column = outputs.error_column(file.session.opened.batch)
            say(f"{file.input}: {summary(file.receipt, file.output, column)}")
    return _receipts(files)


def _receipts(files: list[FileRun]) -> list[Receipt]:
    """Raises: the error of the first file that has one; those of others are its notes."""
    errors = [file.error for file in files if file.error is not None]
    if errors:
        for other in errors[1:]:
            errors[0].add_note(str(other))
        raise errors[0]
    receipts = [file.receipt for file in files if file.receipt is not None]
    if len(receipts) < len(files):
        raise BatchfileError(_STOPPED)
    return receipts


class _Worker:
    """Runs the work in a separate thread: Ctrl-C interrupts the waiting caller, which then stops the runner.

    It needs no signal handlers, so it works in a notebook and in any thread.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._runner: Runner | Replicas | None = None
        self._how_to_stop: Callable[[Runner | Replicas], None] | None = None
        self._ended: Future[object] = Future()

    def on_runner(self, runner: Runner | Replicas) -> None:
        self._runner = runner
        runner.on_stuck = self._end_stuck
        if self._how_to_stop is not None:
            self._how_to_stop(runner)

    def run(self, work: Callable[[], T]) -> T:
        """Returns or raises what `work` does. Raises: KeyboardInterrupt."""
        worker = threading.Thread(target=self._work, args=(work,), name="batchfile-run", daemon=True)
        try:
            worker.start()  # it may work, and be interrupted, before this returns
            return cast(T, self._wait())
        except KeyboardInterrupt:
            self._stop(methodcaller("stop"), "stopping: finishing the requests in flight; interrupt again to stop now")
        try:
            self._wait()
        except KeyboardInterrupt:
            self._stop(methodcaller("stop_now"), "stopping now")
            self._wait()
        self._say("stopped; what has finished is kept, and the same call resumes")
        raise KeyboardInterrupt

    def _wait(self) -> object:
        while not self._ended.done():
            wait([self._ended], WAKE_S)
        return self._ended.result()

    def _work(self, work: Callable[[], object]) -> None:
        with suppress(InvalidStateError):  # the engine was stuck, and the caller has its error already
            try:
                self._ended.set_result(work())
            except BaseException as error:  # noqa: BLE001 the caller raises it
                self._ended.set_exception(error)

    def _stop(self, how: Callable[[Runner | Replicas], None], text: str) -> None:
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


def _watched(say: Callable[[str], None], *, is_shown: bool) -> tuple[_Worker, Observer]:
    worker = _Worker(say)
    return worker, Observer(say=say, on_runner=worker.on_runner, show=_shown if is_shown else nullcontext)


def _shown(look: Look) -> AbstractContextManager[object]:
    return Progress(look, is_json=False)
