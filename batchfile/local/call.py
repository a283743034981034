"""`batchfile.run`: a file through one engine, as a function call. Ends no process and sets no signal handler."""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from typing import Literal, NoReturn, get_args

from batchfile import logs
from batchfile.errors import BatchfileError, EngineDead, SettingsError
from batchfile.ledger.records import BatchRecord
from batchfile.local import outputs
from batchfile.local.engines import choose_engine
from batchfile.local.receipt import Receipt
from batchfile.local.session import Job, Look, Observer, grace_s_of, open_session, work_on
from batchfile.runner.runner import Runner
from batchfile.settings import load_settings
from batchfile.types import EngineKind, Task

Dtype = Literal["auto", "bfloat16", "float16", "float32"]


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

    The options are those of `batchfile run` (docs/cli.md); what is not given is taken from the settings. The same call
    again resumes where the last one stopped, whatever ended it, and runs lines that were added at the end of `input`;
    once all is done it returns the same receipt. Requests that failed raise nothing: look at `receipt.counts` and
    `receipt.errors`. Ctrl-C finishes what is being generated, for `grace_s`, and raises KeyboardInterrupt; a second one
    stops now, a third does not wait. `progress`: on stderr.

    Raises: InvalidFile where the input cannot be used (with `strict` also for one line that cannot run); SettingsError
    for a wrong option, model or endpoint; OutputTaken where the output belongs to another run; EngineDead; StoreError.

    >>> receipt = batchfile.run("requests.jsonl", "results.jsonl", engine="echo", progress=False)
    >>> receipt.counts.succeeded, receipt.is_all_succeeded
    (2, True)
    """
    _check_choice("engine", engine, EngineKind)
    _check_choice("task", task, Task)
    _check_choice("dtype", dtype, Dtype)
    _check_range("limit", limit, 1)
    _check_range("max_tokens", max_tokens, 1)
    _check_range("temperature", temperature, 0, 2)
    _check_range("max_model_len", max_model_len, 16)
    _check_range("max_num_seqs", max_num_seqs, 1)
    _check_range("grace_s", grace_s, 0)
    if os.fspath(output) == outputs.STDOUT:
        raise SettingsError("output: give a path; only the command writes to stdout")
    logs.for_library()
    settings = load_settings()
    choice = choose_engine(
        settings,
        engine,
        model,
        base_url,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        task=task,
        dtype=dtype,
        tool_parser=tool_parser,
        reasoning_parser=reasoning_parser,
        wait_for_endpoint=wait_for_endpoint,
    )
    job = Job(
        input=os.fspath(input),
        output=os.fspath(output),
        store=None if store is None else os.fspath(store),
        stage=stage,
        limit=limit,
        is_strict=strict,
        is_restart=restart,
        max_tokens=max_tokens,
        temperature=temperature,
    )
    say = _say if progress else _say_nothing
    with ExitStack() as stack:
        session = open_session(stack, settings, job, choice, say)
        assert session.path is not None
        batch: BatchRecord | None = session.opened.batch
        if batch is not None and batch.state != "ended":
            worker = _Worker(say)
            observer = Observer(say=say, on_runner=worker.on_runner, show=_shown if progress else _not_shown)
            batch = worker.run(lambda: work_on(session, choice, observer, grace_s=grace_s_of(settings, grace_s)))
        if batch is None:
            raise BatchfileError("the run was stopped before its end; make the same call again")
        receipt = outputs.export(session.ledger, batch, session.path)
        if session.is_added_to(batch):
            say(f"{job.input} was added to while it ran; the same call again runs the new lines")
        return receipt


class _Worker:
    """The work in a thread of its own: Ctrl-C reaches the caller, who waits for it and tells the runner to stop.

    So it needs no signal handler, and works in a notebook and in any thread.
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
        """What `work` returns or raises. Raises: KeyboardInterrupt."""
        threading.Thread(target=self._work, args=(work,), name="batchfile-run", daemon=True).start()
        try:
            return self._ended.result()
        except KeyboardInterrupt:
            self._stop(Runner.stop, "stopping: what is being generated is finished; interrupt again to stop now")
        try:
            self._ended.result()
        except KeyboardInterrupt:
            self._stop(Runner.stop_now, "stopping now")
            self._ended.result()
        raise KeyboardInterrupt

    def _work(self, work: Callable[[], BatchRecord | None]) -> None:
        with suppress(InvalidStateError):  # the caller has not waited for it
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
        """The engine's call may never return: its thread is left behind, and the caller goes on."""
        self._ended.set_exception(
            EngineDead(f"{reason}; what had finished is kept: restart this process and make the same call again")
        )
        raise SystemExit  # ends the watchdog's thread, no more


def _check_choice(name: str, value: object, kind: object) -> None:
    if value is not None and value not in get_args(kind):
        raise SettingsError(f"{name}: {value!r} is unknown; use one of {', '.join(get_args(kind))}")


def _check_range(name: str, value: float | None, least: float, most: float = float("inf")) -> None:
    if value is None or (least <= value <= most and value != float("inf")):
        return
    limits = f"at least {least:g}" if most == float("inf") else f"from {least:g} to {most:g}"
    raise SettingsError(f"{name}: {value!r} must be {limits}")


def _shown(look: Look) -> AbstractContextManager[object]:
    from batchfile.local.progress_bar import Progress

    return Progress(look, is_json=False)


def _not_shown(look: Look) -> AbstractContextManager[object]:
    return nullcontext()


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def _say_nothing(text: str) -> None:
    """Nobody looks."""
