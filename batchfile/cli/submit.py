"""The commands that create a batch: from a file, or from the requests of a batch that did not succeed."""

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import click

from batchfile.cli.batch_text import end_lines
from batchfile.cli.exits import Exit, report_lost_output
from batchfile.cli.help import epilog
from batchfile.cli.numbers import Whole
from batchfile.cli.progress import follow_one, transfer
from batchfile.cli.remote import CREATE_EXITS, Where, check_free, exit_of_batch, save, where_options
from batchfile.cli.run_options import run_options
from batchfile.client.batch import Batch
from batchfile.client.connection import Connection, checked_metadata
from batchfile.client.upload import LastByte, Upload, open_upload, repeatable
from batchfile.errors import BatchfileError
from batchfile.lines.framing import NUL_TAIL
from batchfile.local.display import counted
from batchfile.local.options import TABLE_OPTIONS, RunOptions

LOOKS_MAX = 4  # lists of results in which to look for the first problem


@click.command(
    "submit",
    epilog=epilog(
        "batchfile submit requests.jsonl.gz --url https://batch.example --stage email --reuse auto -o results.jsonl",
        "batchfile submit reviews.csv --prompt 'Is this review good? {{ review }}' --choices yes,no -o answers.csv",
        "batchfile submit s3://bucket/in.parquet --store s3://bucket/prefix --pool mistral --metadata campaign=spring",
        exits=CREATE_EXITS,
    ),
)
@click.argument("file")
@click.option("--stage", help="The stage of all requests.  [default: by each line's model_hint or model]")
@click.option("--pool", help="Send all requests to this pool, regardless of their model_hint or model.")
@click.option("--priority", type=Whole(0, 9), default=5, show_default=True, help="0 runs first.")
@click.option("--metadata", "pairs", multiple=True, metavar="NAME=VALUE", help="Store with the batch; repeatable.")
@click.option("--strict", is_flag=True, help="Reject the file if any line cannot run.")
@click.option(
    "--reuse",
    metavar="BATCH",
    help="Keep the results of an ended batch for requests that are the same; auto: of the latest ones that the same "
    "model made, for requests with temperature 0 or a seed.",
)
@click.option("--detach", is_flag=True, help="Do not wait for the end of the batch: the default.")
@click.option("--wait", is_flag=True, help="Wait for the end of the batch; the exit code reports its outcome.")
@click.option(
    "-o",
    "--output",
    metavar="OUT",
    help="Wait, and write the results to OUT (.jsonl or .parquet; of rows also .csv, .tsv, .txt; -).",
)
@run_options(TABLE_OPTIONS)
@where_options
def submit(
    file: str,
    stage: str | None,
    pool: str | None,
    priority: int,
    pairs: tuple[str, ...],
    strict: bool,
    reuse: str | None,
    detach: bool,
    wait: bool,
    output: str | None,
    where: Where,
    **rows: Any,
) -> None:
    """Create a batch from FILE, - (stdin), https://… or s3://BUCKET/KEY, and print its id.

    FILE has requests, rows or lines of text, in the formats of `batchfile run`; rows and text become requests here, as
    in `batchfile run`. With -o, OUT then has the same rows with their answers. `batchfile results` cannot join them
    later: it has a result line for each row, with the id of --id-column, else the row's custom_id or id, else its
    number, such as row-000001.

    For a service the requests are compressed, and sent again if the connection breaks; they still become one batch. For
    a store they are written directly, in parallel parts. An address is read here, with your own credentials.
    """
    if detach and (wait or output is not None):
        raise click.UsageError("--detach cannot be combined with --wait or -o")
    metadata = _metadata(pairs)
    last_byte = LastByte()
    upload = last_byte.watch(open_upload(file, RunOptions(input=file, **rows)))
    path = None if output is None else check_free(output, upload=upload)
    with where.connected(writes=True, is_new=True) as connection, ExitStack() as stack:
        if path is not None and upload.table is not None:  # the file may change before its answers are there
            upload = stack.enter_context(repeatable(upload, is_spooled=True))
        with _interruptible(), transfer(upload.name, upload.size) as on_bytes:
            batch = connection.submit(
                upload,
                stage=stage,
                pool=pool,
                priority=priority,
                metadata=metadata,
                strict=strict,
                reuse=reuse,
                on_bytes=on_bytes,
            )
        with report_lost_output(f"the batch {batch.id} was created; do not submit the file again"):
            click.echo(batch.id, err=path == "-")
        if last_byte.value == b"\0":
            click.echo(f"note: {upload.name} {NUL_TAIL}", err=True)
        if reuse is not None:
            _say_what_is_reused(batch)
        _say_what_can_not_run(batch)
        _say_who_works(connection, batch)
        if upload.table is not None and path is None:
            click.echo("note: its results have the ids of the rows, not their columns; -o joins them", err=True)
        if wait or path is not None:
            sys.exit(_finish(batch, path, upload))


@click.command(
    "rerun",
    epilog=epilog(
        "batchfile rerun batch_4f2a91c07d3e",
        "batchfile rerun batch_4f2a91c07d3e --url https://batch.example -o results.jsonl",
        exits=CREATE_EXITS,
    ),
)
@click.argument("batch")
@click.option("--wait", is_flag=True, help="Wait for the end of the new batch; the exit code reports its outcome.")
@click.option("-o", "--output", metavar="OUT", help="Wait, and write its results to OUT (.jsonl or .parquet; -).")
@where_options
def rerun(batch: str, wait: bool, output: str | None, where: Where) -> None:
    """Create a new batch from the requests of BATCH that did not succeed, and print its id.

    BATCH must have ended and does not change. The metadata of the new batch has its id as `retry_of`.
    """
    path = None if output is None else check_free(output)
    with where.connected(batch, writes=True) as connection:
        made = connection.batch(batch).rerun_failed()
        with report_lost_output(f"the batch {made.id} was created; do not rerun {batch} again"):
            click.echo(made.id, err=path == "-")
        click.echo(f"it reruns {counted(made.last_status.total, 'request')} of {batch}", err=True)
        if wait or path is not None:
            sys.exit(_finish(made, path))


def _finish(batch: Batch, path: str | None, upload: Upload | None = None) -> Exit:
    """Wait for the batch's end, and write its results where a path is given."""
    batch_id = batch.id
    try:
        ended = follow_one(batch, lambda one: click.echo("\n".join(end_lines(one)), err=True))
    except (KeyboardInterrupt, BatchfileError):
        click.echo(f"{batch_id} keeps running: `batchfile watch {batch_id}` follows it", err=True)
        raise
    try:
        with report_lost_output(f"the batch {batch_id} was created and has ended; do not create it again"):
            is_saved = path is None or save(batch, path, upload)
    except (KeyboardInterrupt, BatchfileError, OSError):
        click.echo(f"{batch_id} has ended: `batchfile results {batch_id} -o OUT` fetches its results", err=True)
        raise
    return exit_of_batch(ended) if is_saved else Exit.FAILED_REQUESTS


@contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        click.echo("interrupted before the batch was confirmed; `batchfile ls` shows whether it exists", err=True)
        raise


def _say_what_is_reused(batch: Batch) -> None:
    status = batch.last_status
    if status.reuse_note and not status.num_reused:
        click.echo(f"note: {status.reuse_note}", err=True)
        return
    sources = ", ".join(source for source, num in status.reused.items() if num)
    origin = f" from {sources}" if sources else ""
    click.echo(f"{status.num_reused:,} of {status.total:,} reused{origin}", err=True)
    if status.reuse_note:
        click.echo(f"note: {status.reuse_note}", err=True)


def _say_what_can_not_run(batch: Batch) -> None:
    """Lines that were rejected while the file was read already have results."""
    status = batch.last_status
    if not status.counts.errored:
        return
    first = _first_problem(batch)
    text = f"{status.counts.errored:,} of {counted(status.total, 'request')} cannot run"
    click.echo(text if first is None else f"{text}: {first}", err=True)


def _first_problem(batch: Batch) -> str | None:
    """None if the first results contain no error."""
    for lines in islice(batch.tail_lines(), LOOKS_MAX):
        for result in map(json.loads, lines):
            if result["status"] == "errored":
                return str(result["error"]["message"])
    return None


def _say_who_works(connection: Connection, batch: Batch) -> None:
    alive = connection.live_pools()
    idle = sorted(pool for pool in batch.last_status.pools if pool not in alive)
    if idle:
        click.echo(f"note: no runner of {', '.join(idle)} is running; the requests wait for one", err=True)


def _metadata(pairs: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs:
        name, is_pair, value = pair.partition("=")
        if not is_pair:
            raise click.UsageError(f"--metadata {pair[:80]}: give NAME=VALUE")
        found[name] = value
    return checked_metadata(found)
