"""`batchfile submit`: a file becomes a batch of a service, or of a store."""

import json
import sys
from itertools import islice

import click

from batchfile.cli.batch_text import end_line
from batchfile.cli.exits import Exit
from batchfile.cli.following import follow_one
from batchfile.cli.remote import CREATE_EXITS, Where, exit_of_batch, where_options
from batchfile.cli.saving import check_free, save
from batchfile.cli.shown import counted
from batchfile.cli.stdout import told_if_lost
from batchfile.cli.transfer import transfer
from batchfile.errors import BatchfileError
from batchfile.remote.base import BatchStatus, Remote, Wanted
from batchfile.remote.upload import Upload, open_upload

METADATA_MAX = 16
NAME_CHARS_MAX = 64
VALUE_CHARS_MAX = 512
LOOKS_MAX = 4  # for the first problem, at results as they land


@click.command("submit", epilog=CREATE_EXITS)
@click.argument("file")
@click.option("--stage", help="The stage whose work this is.  [default: by each line's model_hint or model]")
@click.option("--priority", type=click.IntRange(0, 9), default=5, show_default=True, help="0 is first.")
@click.option("--metadata", "pairs", multiple=True, metavar="NAME=VALUE", help="Kept with the batch; repeatable.")
@click.option("--strict", is_flag=True, help="Refuse the file if one line can not run.")
@click.option("--detach", is_flag=True, help="Do not wait for its end: the default.")
@click.option("--wait", is_flag=True, help="Wait for its end; the exit code says how it went.")
@click.option("-o", "--output", metavar="OUT", help="Wait, and write the results to OUT (.jsonl or .parquet; -).")
@where_options
def command(
    file: str,
    stage: str | None,
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
    wanted = Wanted(stage=stage, priority=priority, metadata=_metadata(pairs), is_strict=strict)
    path = None if output is None else check_free(output)
    upload = open_upload(file)
    with where.opened(writes=True, is_new=True) as remote:
        batch = _submit(remote, upload, wanted)
        with told_if_lost(f"the batch {batch.batch_id} is made; do not submit the file again"):
            click.echo(batch.batch_id, err=path == "-")
        _say_what_can_not_run(remote, batch)
        _say_who_works(remote, batch)
        if wait or path is not None:
            sys.exit(finish(remote, batch, path))


def finish(remote: Remote, batch: BatchStatus, path: str | None) -> Exit:
    """Wait for the batch's end, and write its results where a path is given."""
    batch_id = batch.batch_id
    try:
        ended = follow_one(remote, batch_id, lambda one: click.echo(end_line(one), err=True))
    except (KeyboardInterrupt, BatchfileError):
        click.echo(f"{batch_id} goes on: `batchfile watch {batch_id}` shows it", err=True)
        raise
    try:
        is_saved = path is None or save(remote, ended, path)
    except (KeyboardInterrupt, BatchfileError, OSError):
        click.echo(f"{batch_id} has ended: `batchfile results {batch_id} -o OUT` fetches its results", err=True)
        raise
    return exit_of_batch(ended) if is_saved else Exit.FAILED_REQUESTS


def _submit(remote: Remote, upload: Upload, wanted: Wanted) -> BatchStatus:
    try:
        with transfer(upload.name, upload.size) as on_bytes:
            return remote.submit(upload, wanted, on_bytes)
    except KeyboardInterrupt:
        click.echo("interrupted before the batch was confirmed; `batchfile ls` shows whether it is there", err=True)
        raise


def _say_what_can_not_run(remote: Remote, batch: BatchStatus) -> None:
    """Lines that were rejected as the file was read have their results already."""
    if not batch.counts.errored:
        return
    first = _first_problem(remote, batch)
    text = f"{batch.counts.errored:,} of {counted(batch.total, 'request')} can not run"
    click.echo(text if first is None else f"{text}: {first}", err=True)


def _first_problem(remote: Remote, batch: BatchStatus) -> str | None:
    """None where it is not among the first results."""
    for lines in islice(remote.live(batch.batch_id), LOOKS_MAX):
        for result in map(json.loads, lines):
            if result["status"] == "errored":
                return str(result["error"]["message"])
    return None


def _say_who_works(remote: Remote, batch: BatchStatus) -> None:
    alive = {runner.pool for runner in remote.runners()}
    idle = sorted(pool for pool in batch.pools if pool not in alive)
    if idle:
        click.echo(f"note: no runner of {', '.join(idle)} is there now; the requests wait for one", err=True)


def _metadata(pairs: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs:
        name, is_pair, value = pair.partition("=")
        if not is_pair or not 0 < len(name) <= NAME_CHARS_MAX or len(value) > VALUE_CHARS_MAX:
            limits = f"NAME up to {NAME_CHARS_MAX} and VALUE up to {VALUE_CHARS_MAX} characters"
            raise click.UsageError(f"--metadata {pair[:80]}: give NAME=VALUE, {limits}")
        found[name] = value
    if len(found) > METADATA_MAX:
        raise click.UsageError(f"--metadata: {len(found)} pairs are more than {METADATA_MAX}")
    return found
