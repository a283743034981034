"""`batchfile run`: the options, signals and messages of a local run. The exit codes are in `exits.py`."""

import json
import os
import shlex
import sys
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import click
import msgspec

from batchfile import logs, tracing
from batchfile.cli.exits import EXIT_HELP, Exit, exit_of, message_of, report_lost_output, say_json
from batchfile.cli.help import epilog
from batchfile.cli.run_options import run_options
from batchfile.cli.stopping import RunSignals, code_of
from batchfile.inbox.documents import stored_file
from batchfile.ledger.records import BatchRecord
from batchfile.local import display, outputs
from batchfile.local.display import Progress, counted
from batchfile.local.engines import EngineChoice, choose_engine
from batchfile.local.folder import is_several, plan_folder
from batchfile.local.options import STDIN, STDOUT, RunOptions
from batchfile.local.progress import Snapshot
from batchfile.local.receipt import Receipt, make_receipt
from batchfile.local.replicas import Replicas
from batchfile.local.session import Look, Observer, Session, grace_s_of, open_session, work_on
from batchfile.local.several import FileRun, open_files, work_on_files
from batchfile.local.summary import reasons, summary
from batchfile.runner.runner import Runner
from batchfile.settings import load_settings
from batchfile.signals import Interrupted

ARGUMENTS_SHOWN_MAX = 40  # of the command that resumes
# From the best to the worst: the exit code of several inputs is the worst of them.
_BADNESS = (Exit.OK, Exit.FAILED_REQUESTS, Exit.INVALID_INPUT, Exit.OUTPUT_TAKEN, Exit.USAGE, Exit.UNEXPECTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """How messages are written to stderr."""

    is_quiet: bool
    is_json: bool

    def say(self, text: str) -> None:
        if not self.is_quiet:
            self.say_always(text)

    def say_always(self, text: str) -> None:
        display.say(json.dumps({"event": "note", "message": text}) if self.is_json else text)


@click.command(
    "run",
    epilog=epilog(
        "batchfile run monday.jsonl 'more/*.jsonl' folder/ -o results/ --model mistralai/Mistral-7B-Instruct-v0.3",
        "batchfile run reviews.csv --prompt 'Is this review good? {{ review }}' --choices yes,no -o answers.csv",
        "batchfile run requests.jsonl -o results.jsonl --engine http --base-url https://llm.example/v1 --model NAME",
        exits=EXIT_HELP,
    ),
)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="OUT",
    help="The results file (.jsonl or .parquet; of rows also .csv, .tsv, .txt), or a folder for several inputs; - is "
    "stdout.",
)
@run_options()
@click.option("--quiet", is_flag=True, help="Print only errors.")
@click.option(
    "--json", "is_json", is_flag=True, help="Print the receipt as one JSON line, and progress as JSON on stderr."
)
@click.option("-v", "--verbose", is_flag=True, help="Log what the runner does.")
def run(inputs: tuple[str, ...], output: str, quiet: bool, is_json: bool, verbose: bool, **given: Any) -> None:
    """Answer every request of the file INPUT and write one result line for each to OUT, in input order.

    INPUT is a path, - (stdin), https://… or s3://BUCKET/KEY. It has requests: JSONL (`params` lines or OpenAI batch
    lines), a JSON array of these, or Parquet; also .gz or .zst. Or it has rows (CSV, TSV, JSONL, Parquet with any
    columns) or lines of text. --prompt makes a request of each row, unless the rows have a column prompt or messages; a
    line of text is a prompt. OUT then has the same rows with the columns answer and error, as CSV, TSV, JSONL, Parquet
    or text (.txt: only the answers), according to its name.

    Also writes OUT.receipt.json and, if any requests did not succeed, OUT.errors.jsonl with their input lines, ready to
    run again, and OUT.reasons.jsonl with the reason of each. The most frequent reasons are printed at the end.

    With several INPUTs, a quoted pattern, a folder, or an OUT that ends with /, OUT is a folder: the results of each
    file have its name there, and are written as soon as it is done. One engine runs all files. A file that cannot be
    used is reported, and the others run; the exit code is the worst of all files: 1, 7, 4, 3, then 0.

    vLLM uses all GPUs: the fewest in which the model fits share it, and as many engines as the machine holds work on
    the same files. --gpus 0-3, --tensor-parallel-size 2 or --replicas 1 choose otherwise; --replicas 2 divides the
    cores of a CPU.

    If a request has a JSON schema, its answer must match it; otherwise the request gets up to two more attempts.

    The same command resumes a run that was stopped, for any reason. Ctrl-C finishes the requests in flight, for up to
    --grace seconds; a second Ctrl-C stops at once.

    After a change of INPUT, even while it ran, or of --limit or --prompt, the same command keeps the answers to all
    requests that are the same as before, runs the others and those that failed, and writes OUT as a whole. It keeps
    none that were made by another model or with other options, such as another chat template. Where it cannot keep any,
    it exits with code 7 and says what changed; --restart discards them. --reuse-from OUT2 takes over the answers of
    another output in the same store, too.
    """
    logs.for_command(is_verbose=verbose)
    tracing.start("batchfile-run")
    settings = load_settings()
    if output == STDOUT and is_json:
        raise click.UsageError("--json and -o - both write to stdout; write the results to a file")
    _check_reuse(inputs if given["reuse"] else ())
    is_folder = is_several(inputs, output)
    options = RunOptions(input=inputs[0], output=None if output == STDOUT else output, **given)
    voice = Voice(is_quiet=quiet, is_json=is_json)
    signals = RunSignals(
        say=voice.say,
        on_end=lambda: voice.say_always(_how_to_resume(options)),
        grace_s=grace_s_of(settings, options.grace_s),
    )
    try:
        with ExitStack() as stack:
            stack.enter_context(signals.caught())
            if is_folder:
                plan = plan_folder(inputs, output, restart=options.restart, is_rows=options.row_option is not None)
                for note in plan.notes:
                    voice.say(note)
                choice = choose_engine(settings, options)
                files = open_files(stack, settings, options, choice, plan, voice.say)
                code = _run_files(files, choice, signals, voice)
            else:
                choice = choose_engine(settings, options)
                code = _run(open_session(stack, settings, options, choice, voice.say), choice, signals, voice)
    except Interrupted as stop:
        code = code_of(stop.number)
    if code in {Exit.INTERRUPTED, Exit.TERMINATED}:
        signals.say_end()
    sys.exit(code)


def _check_reuse(inputs: tuple[str, ...]) -> None:
    """Raises: UsageError where an input is a batch, as `batchfile submit --reuse` takes it."""
    for name in inputs:
        if (name == "auto" or name.startswith(("batch_", "msgbatch_"))) and not os.path.exists(name):
            raise click.UsageError(
                f"--reuse takes no value here, so {name} is read as an input. OUT keeps the answers of its own earlier "
                "runs; --reuse-from OUT2 keeps those of another output"
            )


def _run(session: Session, choice: EngineChoice, signals: RunSignals, voice: Voice) -> Exit:
    batch = session.opened.batch
    if batch.state == "ended":
        voice.say(f"{batch.batch_id} has already ended; nothing is left to run")
    else:
        ended = work_on(session, choice, _observer(signals, voice), grace_s=signals.grace_s)
        _say_given_up(signals, voice)
        signals.runner = None  # while the files are written, a signal has no requests in flight to wait for
        if signals.code is not None:
            return signals.code
        if ended is None:
            return Exit.UNEXPECTED
        batch = ended
    path, store = session.options.output, session.options.store
    if path is not None:
        code = _finish(session, batch, voice)
        if session.is_added_to(batch.reason):
            voice.say(f"lines were added to {session.options.input} while it ran; the same command runs them")
        return code
    advice = "the results are lost; run it again with -o FILE, which can also resume"
    if store is not None:
        how = f"`batchfile results {batch.batch_id} -o FILE --store {shlex.quote(store)}`"
        advice = f"the results are kept: {how} writes them"
    with report_lost_output(advice):
        return _finish(session, batch, voice)


def _run_files(files: list[FileRun], choice: EngineChoice, signals: RunSignals, voice: Voice) -> Exit:
    work_on_files(files, choice, _observer(signals, voice), grace_s=signals.grace_s)
    _say_given_up(signals, voice)
    signals.runner = None
    codes = [_finish_file(file, voice) for file in files]
    done = [file.receipt for file in files if file.receipt is not None]
    total = sum(receipt.input.requests for receipt in done)
    succeeded = sum(receipt.counts.succeeded for receipt in done)
    voice.say(
        f"{len(done):,} of {counted(len(files), 'file')} done: {succeeded:,} of {counted(total, 'request')} succeeded"
    )
    return signals.code or max(codes, key=_BADNESS.index)


def _finish_file(file: FileRun, voice: Voice) -> Exit:
    """Print its receipt or its error."""
    if file.receipt is not None:
        if voice.is_json:
            with report_lost_output(f"the receipts are next to the results in {os.path.dirname(file.output)}"):
                click.echo(msgspec.json.encode(file.receipt))
        column = None if file.session is None else outputs.error_column(file.session.opened.batch)
        voice.say(f"{file.input}: {summary(file.receipt, file.output, column)}")
        _say_why(file.receipt, voice)
        if file.session is not None and file.session.is_added_to(file.receipt.reason):
            voice.say(f"lines were added to {file.input} while it ran; the same command runs them")
        return Exit.OK if file.receipt.is_all_succeeded else Exit.FAILED_REQUESTS
    if file.error is not None:
        code, message = exit_of(file.error), message_of(file.error) or repr(file.error)
        if voice.is_json:
            say_json(message, code)
        else:
            voice.say_always(f"batchfile: {message}")
        return code
    return Exit.UNEXPECTED  # stopped before its end


def _say_given_up(signals: RunSignals, voice: Voice) -> None:
    if signals.code is not None and signals.runner is not None and signals.runner.num_in_flight:
        left = counted(signals.runner.num_in_flight, "request")
        voice.say(f"gave up on {left} in flight; finished requests are kept")


def _observer(signals: RunSignals, voice: Voice) -> Observer:
    """Passes progress and the runner to `signals`, so that its messages match the display."""

    def on_runner(runner: Runner | Replicas) -> None:
        signals.runner = runner
        runner.on_stuck = signals.end_stuck

    def show(look: Look) -> AbstractContextManager[object]:
        def seen() -> Snapshot | None:
            signals.seen = look()
            return signals.seen

        return nullcontext() if voice.is_quiet else Progress(seen, is_json=voice.is_json)

    return Observer(say=voice.say, on_runner=on_runner, show=show)


def _finish(session: Session, batch: BatchRecord, voice: Voice) -> Exit:
    """Write the files of the ended batch and print a summary."""
    ledger, path, gpu_hour = session.ledger, session.options.output, session.options.gpu_hour
    if path is None:
        assert batch.results is not None
        assert batch.errors is not None
        outputs.write_results_to(ledger, batch, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        receipt = make_receipt(batch, stored_file(batch.results), gpu_hour=gpu_hour)
    else:
        receipt = outputs.export(ledger, batch, path, voice.say, gpu_hour=gpu_hour)
    if voice.is_json:
        with report_lost_output(f"the results are in {path}, and the receipt is in {path}.receipt.json"):
            click.echo(msgspec.json.encode(receipt))
    voice.say(summary(receipt, path, outputs.error_column(batch)))
    _say_why(receipt, voice)
    return Exit.OK if receipt.is_all_succeeded else Exit.FAILED_REQUESTS


def _say_why(receipt: Receipt, voice: Voice) -> None:
    for text in reasons(receipt):
        voice.say(text)


def _how_to_resume(options: RunOptions) -> str:
    if options.output is None:
        return "interrupted"
    arguments = [argument for argument in sys.argv[1:] if argument != "--restart"]
    if len(arguments) > ARGUMENTS_SHOWN_MAX:
        return "interrupted; the same command resumes"
    same = " (with the same input on stdin)" if options.input == STDIN else ""
    return f"interrupted; to resume{same}:\n  batchfile {shlex.join(arguments)}"
