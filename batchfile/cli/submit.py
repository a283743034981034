"""The commands that make a batch: of a file, or of what did not succeed in another batch."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import click

from batchfile.cli.batch_text import end_line
from batchfile.cli.exits import Exit, report_lost_output
from batchfile.cli.numbers import Whole
from batchfile.cli.progress import follow_one, transfer
from batchfile.cli.remote import CREATE_EXITS, Where, check_free, exit_of_batch, save, where_options
from batchfile.client.batch import Batch
from batchfile.client.connection import Connection, checked_metadata
from batchfile.client.upload import LastByte, open_upload
from batchfile.errors import BatchfileError
from batchfile.lines.framing import NUL_TAIL
from batchfile.local.display import counted

LOOKS_MAX = 4  # for the first problem, at results as they land


@click.command("submit", epilog=CREATE_EXITS)
@click.argument("file")
@click.option("--stage", help="The stage whose work this is.  [default: by each line's model_hint or model]")
@click.option("--pool", help="The pool that all of it goes to, whatever its lines say.")
@click.option("--priority", type=Whole(0, 9), default=5, show_default=True, help="0 is first.")
@click.option("--metadata", "pairs", multiple=True, metavar="NAME=VALUE", help="Kept with the batch; repeatable.")
@click.option("--strict", is_flag=True, help="Refuse the file if one line can not run.")
@click.option("--detach", is_flag=True, help="Do not wait for its end: the default.")
@click.option("--wait", is_flag=True, help="Wait for its end; the exit code says how it went.")
@click.option("-o", "--output", metavar="OUT", help="Wait, and write the results to OUT (.jsonl or .parquet; -).")
@where_options
def submit(
    file: str,
    stage: str | None,
    pool: str | None,
    priority: int,
    pairs: tuple[str, ...],
    strict: bool,
    detach: bool,
    wait: bool,
    output: str | None,
    where: Where,
) -> None:
    """Make a batch of FILE, - (stdin) or s3://BUCKET/KEY, and print its id.

    FILE is JSONL (`params` lines or OpenAI batch lines), also .gz or .zst, or Parquet. To a service it goes packed and
    may be cut off and sent again: it becomes one batch. To a store it goes straight, in parallel parts.
    """
    if detach and (wait or output is not None):
        raise click.UsageError("--detach does not wait, and --wait and -o do")
    metadata = _metadata(pairs)
    path = None if output is None else check_free(output)
    last_byte = LastByte()
    upload = last_byte.watch(open_upload(file))
    with where.connected(writes=True, is_new=True) as connection:
        with _interruptible(), transfer(upload.name, upload.size) as on_bytes:
            batch = connection.submit(
                upload, stage=stage, pool=pool, priority=priority, metadata=metadata, strict=strict, on_bytes=on_bytes
            )
        with report_lost_output(f"the batch {batch.id} is made; do not submit the file again"):
            click.echo(batch.id, err=path == "-")
        if last_byte.value == b"\0":
            click.echo(f"note: {upload.name} {NUL_TAIL}", err=True)
        _say_what_can_not_run(batch)
        _say_who_works(connection, batch)
        if wait or path is not None:
            sys.exit(_finish(batch, path))


@click.command("rerun", epilog=CREATE_EXITS)
@click.argument("batch")
@click.option("--wait", is_flag=True, help="Wait for the new batch's end; the exit code says how it went.")
@click.option("-o", "--output", metavar="OUT", help="Wait, and write its results to OUT (.jsonl or .parquet; -).")
@where_options
def rerun(batch: str, wait: bool, output: str | None, where: Where) -> None:
    """Make a new batch of the requests of BATCH that did not succeed, and print its id.

    BATCH must have ended, and stays as it is. The new one has `retry_of` in its metadata.
    """
    path = None if output is None else check_free(output)
    with where.connected(batch, writes=True) as connection:
        made = connection.batch(batch).rerun_failed()
        with report_lost_output(f"the batch {made.id} is made; do not rerun {batch} again"):
            click.echo(made.id, err=path == "-")
        click.echo(f"it runs {counted(made.last_status.total, 'request')} of {batch} again", err=True)
        if wait or path is not None:
            sys.exit(_finish(made, path))


def _finish(batch: Batch, path: str | None) -> Exit:
    """Wait for the batch's end, and write its results where a path is given."""
    batch_id = batch.id
    try:
        ended = follow_one(batch, lambda one: click.echo(end_line(one), err=True))
    except (KeyboardInterrupt, BatchfileError):
        click.echo(f"{batch_id} goes on: `batchfile watch {batch_id}` shows it", err=True)
        raise
    try:
        with report_lost_output(f"the batch {batch_id} is made and has ended; do not make it again"):
            is_saved = path is None or save(batch, path)
    except (KeyboardInterrupt, BatchfileError, OSError):
        click.echo(f"{batch_id} has ended: `batchfile results {batch_id} -o OUT` fetches its results", err=True)
        raise
    return exit_of_batch(ended) if is_saved else Exit.FAILED_REQUESTS


@contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        click.echo("interrupted before the batch was confirmed; `batchfile ls` shows whether it is there", err=True)
        raise


def _say_what_can_not_run(batch: Batch) -> None:
    """Lines that were rejected as the file was read have their results already."""
    status = batch.last_status
    if not status.counts.errored:
        return
    first = _first_problem(batch)
    text = f"{status.counts.errored:,} of {counted(status.total, 'request')} can not run"
    click.echo(text if first is None else f"{text}: {first}", err=True)


def _first_problem(batch: Batch) -> str | None:
    """None where it is not among the first results."""
    for lines in islice(batch.tail_lines(), LOOKS_MAX):
        for result in map(json.loads, lines):
            if result["status"] == "errored":
                return str(result["error"]["message"])
    return None


def _say_who_works(connection: Connection, batch: Batch) -> None:
    alive = connection.live_pools()
    idle = sorted(pool for pool in batch.last_status.pools if pool not in alive)
    if idle:
        click.echo(f"note: no runner of {', '.join(idle)} is there now; the requests wait for one", err=True)


def _metadata(pairs: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs:
        name, is_pair, value = pair.partition("=")
        if not is_pair:
            raise click.UsageError(f"--metadata {pair[:80]}: give NAME=VALUE")
        found[name] = value
    return checked_metadata(found)
