"""`batchfile run`: options, signals and words around `batchfile.local`. The exit codes are in `exits.py`."""

import json
import os
import shlex
import sys
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass

import click
import msgspec

from batchfile import logs
from batchfile.cli.exits import EXIT_HELP, Exit, report_lost_output
from batchfile.cli.numbers import Finite, Whole
from batchfile.cli.stopping import Signals, code_of
from batchfile.ledger.base import Ledger
from batchfile.ledger.records import BatchRecord
from batchfile.local import outputs
from batchfile.local.display import counted, duration
from batchfile.local.engines import EngineChoice, choose_engine
from batchfile.local.inputs import STDIN
from batchfile.local.progress import Snapshot
from batchfile.local.progress_bar import Progress
from batchfile.local.receipt import Receipt, make_receipt
from batchfile.local.session import Job, Look, Observer, Session, grace_s_of, open_session, work_on
from batchfile.runner.runner import Runner
from batchfile.settings import load_settings
from batchfile.signals import Interrupted
from batchfile.types import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """What is said on stderr, and how."""

    is_quiet: bool
    is_json: bool

    def say(self, text: str) -> None:
        if not self.is_quiet:
            self.say_always(text)

    def say_always(self, text: str) -> None:
        click.echo(json.dumps({"event": "note", "message": text}) if self.is_json else text, err=True)


@click.command("run", epilog=EXIT_HELP)
@click.argument("input_path", metavar="IN")
@click.option(
    "-o", "--output", required=True, metavar="OUT", help="The results file (.jsonl or .parquet); - is stdout."
)
@click.option("--engine", type=click.Choice(["vllm", "http", "echo"]), help="What generates.  [default: vllm]")
@click.option("--model", help="A model's name or directory.  [default: the demo model, if it is cached]")
@click.option(
    "--base-url", metavar="URL", help="With --engine http: an OpenAI-compatible endpoint. Its key is OPENAI_API_KEY."
)
@click.option(
    "--wait-for-endpoint",
    is_flag=True,
    help="With --engine http: wait where the endpoint is not available, or refuses the key or the model, instead of "
    "ending the run.",
)
@click.option("--stage", help="The stage whose work this is; kept with the batch.")
@click.option("--limit", type=Whole(min=1), metavar="N", help="Run the first N requests only.")
@click.option("--strict", is_flag=True, help="Refuse the file if one line can not run, before the engine loads.")
@click.option("--restart", is_flag=True, help="Throw away the run that this output belongs to, and begin anew.")
@click.option("--max-tokens", type=Whole(min=1), help="Where a request does not say.  [default: 2048]")
@click.option("--temperature", type=Finite(0, 2), help="Where a request does not say.")
@click.option("--max-model-len", type=Whole(min=16), help="Tokens of prompt and answer together.")
@click.option("--max-num-seqs", type=Whole(min=1), help="Requests that are generated at the same time.")
@click.option(
    "--task",
    type=click.Choice(["generate", "embed"]),
    default="generate",
    help="What the model is for: embed for /v1/embeddings lines.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "bfloat16", "float16", "float32"]),
    metavar="TYPE",
    help="What vLLM computes with: bfloat16, float16, float32, or auto: the model's own, or float32 where the CPU "
    "would emulate that.  [default: auto]",
)
@click.option("--tool-parser", metavar="NAME", help="vLLM's name of the parser for tool calls.")
@click.option("--reasoning-parser", metavar="NAME", help="vLLM's name of the parser for thinking.")
@click.option(
    "--grace",
    "grace_s",
    type=Finite(min=0),
    metavar="SECONDS",
    help="How long Ctrl-C or SIGTERM lets requests finish that are being generated.  [default: 30]",
)
@click.option("--store", metavar="STORE", help="A directory or s3://bucket/prefix.  [default: .batchfile beside OUT]")
@click.option("--quiet", is_flag=True, help="Say nothing but errors.")
@click.option(
    "--json", "is_json", is_flag=True, help="The receipt as one JSON line on stdout, progress as JSON on stderr."
)
@click.option("-v", "--verbose", is_flag=True, help="Log what the runner does.")
def run(
    input_path: str,
    output: str,
    engine: str | None,
    model: str | None,
    base_url: str | None,
    wait_for_endpoint: bool,
    stage: str | None,
    limit: int | None,
    strict: bool,
    restart: bool,
    max_tokens: int | None,
    temperature: float | None,
    max_model_len: int | None,
    max_num_seqs: int | None,
    task: Task,
    dtype: str | None,
    tool_parser: str | None,
    reasoning_parser: str | None,
    grace_s: float | None,
    store: str | None,
    quiet: bool,
    is_json: bool,
    verbose: bool,
) -> None:
    """Answer every request of the file IN (- is stdin) and write one result line for each to OUT, in input order.

    IN is JSONL (`params` lines or OpenAI batch lines), also .gz or .zst, or Parquet. Beside OUT come
    OUT.errors.jsonl (the input lines that failed, ready to run again; absent if none) and OUT.receipt.json.

    An answer to a request with a JSON schema is checked against it; one that does not fit is tried again, three
    attempts in all.

    The same command again continues where the last one stopped, whatever ended it. Ctrl-C finishes what is being
    generated, for the time of --grace; a second Ctrl-C stops at once.

    Where lines were added at the end of IN, while it ran or later, the same command runs these and what has not
    succeeded, and OUT has the results of all. After any other change of IN it refuses, with exit code 7.
    """
    logs.for_command(is_verbose=verbose)
    settings = load_settings()
    is_stdout = output == outputs.STDOUT
    if is_stdout and is_json:
        raise click.UsageError("--json and -o - both want stdout; write the results to a file")
    voice = Voice(is_quiet=quiet, is_json=is_json)
    signals = Signals(
        say=voice.say,
        on_end=lambda: voice.say_always(_how_to_resume(is_stdout=is_stdout, is_stdin=input_path == STDIN)),
        grace_s=grace_s_of(settings, grace_s),
    )
    try:
        with ExitStack() as stack:
            stack.enter_context(signals.caught())
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
                input=input_path,
                output=output,
                store=store,
                stage=stage,
                limit=limit,
                is_strict=strict,
                is_restart=restart,
                max_tokens=max_tokens,
                temperature=temperature,
            )
            code = _run(open_session(stack, settings, job, choice, voice.say), choice, signals, voice)
    except Interrupted as stop:
        code = code_of(stop.number)
    if code in {Exit.INTERRUPTED, Exit.TERMINATED}:
        signals.say_end()
    sys.exit(code)


def _run(session: Session, choice: EngineChoice, signals: Signals, voice: Voice) -> Exit:
    batch = session.opened.batch
    if batch.state == "ended":
        voice.say(f"{batch.batch_id} ended before; nothing is left to run")
    else:
        ended = work_on(session, choice, _observer(signals, voice), grace_s=signals.grace_s)
        if signals.code is not None and signals.runner is not None and signals.runner.num_in_flight:
            left = counted(signals.runner.num_in_flight, "request")
            voice.say(f"gave up on {left} in flight; what had finished is kept")
        signals.runner = None  # a signal while the files are written has nothing in flight to wait for
        if signals.code is not None:
            return signals.code
        if ended is None:
            return Exit.UNEXPECTED
        batch = ended
    if session.path is not None:
        code = _finish(session.ledger, batch, session.path, voice)
        if session.is_added_to(batch):
            voice.say(f"{session.job.input} was added to while it ran; the same command again runs the new lines")
        return code
    how = f"`batchfile results {batch.batch_id} -o FILE --store {shlex.quote(session.store)}`"
    nothing = "nothing of this run is kept; run it with -o FILE, which also resumes"
    with report_lost_output(f"the results are kept: {how} writes them" if session.is_kept else nothing):
        return _finish(session.ledger, batch, None, voice)


def _observer(signals: Signals, voice: Voice) -> Observer:
    """What it shows is what a signal speaks of."""

    def on_runner(runner: Runner) -> None:
        signals.runner = runner
        runner.on_stuck = signals.end_stuck

    def show(look: Look) -> AbstractContextManager[object]:
        def seen() -> Snapshot | None:
            signals.seen = look()
            return signals.seen

        return nullcontext() if voice.is_quiet else Progress(seen, is_json=voice.is_json)

    return Observer(say=voice.say, on_runner=on_runner, show=show)


def _finish(ledger: Ledger, batch: BatchRecord, path: str | None, voice: Voice) -> Exit:
    """Write the files of the ended batch and say how it went."""
    if path is None:
        assert batch.results is not None
        assert batch.errors is not None
        outputs.write_results_to(ledger, batch, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        receipt = make_receipt(batch, outputs.store_facts(batch.results), None)
    else:
        receipt = outputs.export(ledger, batch, path)
    if voice.is_json:
        with report_lost_output(f"the results are in {path}, and the receipt is in {path}.receipt.json"):
            click.echo(msgspec.json.encode(receipt))
    voice.say(_summary(receipt, path))
    return Exit.OK if receipt.is_all_succeeded else Exit.FAILED_REQUESTS


def _summary(receipt: Receipt, path: str | None) -> str:
    num_failed = receipt.input.requests - receipt.counts.succeeded
    total = counted(receipt.input.requests, "request")
    text = f"{receipt.counts.succeeded:,} of {total} succeeded in {duration(receipt.seconds)}"
    if receipt.reason == "input_changed":
        text += f"; the rest was not run, because {receipt.input.path} {_what_became_of(receipt.input.path)}"
    elif receipt.reason != "completed":
        text += f"; the batch was ended early ({receipt.reason})"
    if path is not None:
        text += f": {path}"
        if num_failed:
            text += f"; {num_failed:,} did not: {_what_to_do(receipt, num_failed)}"
    return text


def _what_became_of(path: str) -> str:
    return "was changed, and not only at its end" if os.path.exists(path) else "was removed while it ran"


def _what_to_do(receipt: Receipt, num_failed: int) -> str:
    """The errors file has no line that is too long, or is not there any more."""
    errors = receipt.errors
    if receipt.reason == "input_changed":
        named = "" if errors is None else f"{errors.path} names them; "
        if not os.path.exists(receipt.input.path):
            return f"{named}put the file back and run the same command again, which finishes the rest"
        return f"{named}run the changed file with another output, or with --restart, which replaces these results"
    if errors is None:
        return "their results say why"
    return f"mend and run {errors.path}" + (f" ({errors.lines:,} of them)" if errors.lines < num_failed else "")


def _how_to_resume(*, is_stdout: bool, is_stdin: bool) -> str:
    if is_stdout:
        return "interrupted"
    arguments = [argument for argument in sys.argv[1:] if argument != "--restart"]
    same = " (with the same input on stdin)" if is_stdin else ""
    return f"interrupted; this continues{same}:\n  batchfile {shlex.join(arguments)}"
