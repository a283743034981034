"""The commands that look at batches of a service or a store, fetch their results, or end them."""

import json
import sys
import time
from itertools import islice

import click

from batchfile.cli.batch_text import as_json, end_line, list_lines, pool_line, status_line
from batchfile.cli.exits import Exit, report_lost_output
from batchfile.cli.numbers import Whole
from batchfile.cli.progress import follow_all, follow_one
from batchfile.cli.remote import REMOTE_EXITS, Where, check_free, exit_of_batch, save, where_options
from batchfile.client.base import BatchStatus
from batchfile.client.connection import Connection
from batchfile.local.options import STDOUT

PAGE = 100  # batches whose columns are as wide


@click.command("ls")
@click.option("-n", "--limit", type=Whole(min=1), default=50, show_default=True, help="At most so many.")
@click.option("--json", "is_json", is_flag=True, help="One JSON line for each batch.")
@where_options
def ls(limit: int, is_json: bool, where: Where) -> None:
    """List the batches of a service or a store, newest first.

    Each with its id, when it was made, its state, how far it is, what failed, and the file or the stage it is of.
    """
    num = 0
    with where.connected() as connection:
        found = islice((batch.last_status for batch in connection.batches()), limit)
        while page := list(islice(found, 1 if is_json else PAGE)):
            num += len(page)
            for row in [json.dumps(as_json(batch)) for batch in page] if is_json else list_lines(page):
                click.echo(row)
    if not num and not is_json:
        whose = "of this API key" if where.url else f"of the tenant {where.tenant}; --tenant names another"
        click.echo(f"no batches {whose}", err=True)


@click.command("status")
@click.argument("batch")
@click.option("--json", "is_json", is_flag=True, help="One JSON line instead of words.")
@where_options
def status(batch: str, is_json: bool, where: Where) -> None:
    """Show how far BATCH is: a batch id, or the path of a run's output. `batchfile watch` goes on looking."""
    with where.connected(batch) as connection:
        found = connection.batch(batch).last_status
    if is_json:
        click.echo(json.dumps(as_json(found)))
        return
    click.echo(status_line(found, time.time()))
    if found.detail is not None:
        click.echo(f"  {found.detail}")
    for name, pool in sorted(found.pools.items()):
        click.echo(f"  {pool_line(name, pool)}")


@click.command("watch", epilog=REMOTE_EXITS)
@click.argument("batch", required=False)
@where_options
def watch(batch: str | None, where: Where) -> None:
    """Show how far BATCH is until it has ended; without BATCH, all that are open.

    On a terminal a live picture with a strip of each pool's shards (█ done, ▒ in work, · waiting), else a line every
    10 s. A service or a store that goes away for a while is waited for.
    """
    with where.opened(batch) as remote:
        if batch is not None:
            ended = [follow_one(Connection(lambda access: remote).batch(batch), _say_end)]
        else:
            ended = follow_all(remote, _say_end)
        if not ended:
            click.echo(f"no batch is open at {remote.place}", err=True)
    sys.exit(max((exit_of_batch(one) for one in ended), default=Exit.OK))


def _say_end(batch: BatchStatus) -> None:
    click.echo(end_line(batch))


@click.command("tail", epilog=REMOTE_EXITS)
@click.argument("batch")
@where_options
def tail(batch: str, where: Where) -> None:
    """Write the results of BATCH to stdout as they land, in no order, until it has ended.

    Each comes once, as a native result line, from the beginning.
    """
    with where.connected(batch) as connection:
        found = connection.batch(batch)
        for lines in found.tail_lines():
            if lines:
                sys.stdout.buffer.write(b"\n".join([*lines, b""]))
                sys.stdout.buffer.flush()
        ended = found.status()
    click.echo(end_line(ended), err=True)
    sys.exit(exit_of_batch(ended))


@click.command("results", epilog=REMOTE_EXITS)
@click.argument("batch")
@click.option(
    "-o", "--output", default="-", metavar="OUT", help="Write to OUT (.jsonl or .parquet).  [default: stdout]"
)
@click.option("--errors", "is_errors", is_flag=True, help="The input lines that did not succeed instead, to stdout.")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@where_options
def results(batch: str, output: str, is_errors: bool, force: bool, where: Where) -> None:
    """Write the results of BATCH (an id, or the path of a run's output), in input order and in the format of its input.

    Beside OUT comes OUT.errors.jsonl: the input lines that did not succeed; absent if none. A download that was
    broken off is continued by the same command. Exits with 3 where BATCH has not ended.
    """
    if is_errors and output != STDOUT:
        raise click.UsageError("--errors writes to stdout; with -o alone these lines come to OUT.errors.jsonl")
    path = check_free(output, is_forced=force)
    with where.connected(batch) as connection:
        found = connection.batch(batch)
        if not found.last_status.has_ended:
            name = found.id
            click.echo(f"{name} has not ended yet; `batchfile watch {name}` shows how far it is", err=True)
            sys.exit(Exit.FAILED_REQUESTS)
        if is_errors:
            found.save_errors(sys.stdout.buffer)
            sys.stdout.buffer.flush()
        elif not save(found, path):
            sys.exit(Exit.FAILED_REQUESTS)
    sys.exit(exit_of_batch(found.last_status))


@click.command("cancel")
@click.argument("batch")
@where_options
def cancel(batch: str, where: Where) -> None:
    """End BATCH (an id, or the path of a run's output). Finished requests keep their results."""
    with where.connected(batch, writes=True) as connection:
        found = connection.batch(batch)
        if found.last_status.has_ended:
            click.echo(f"{found.id} had ended already ({found.last_status.reason})")
            return
        after = found.cancel()
    with report_lost_output(f"the batch {after.batch_id} is canceled all the same"):
        if after.has_ended:
            click.echo(end_line(after))
        else:
            click.echo(f"{after.batch_id} is ending: its runner or the service does the rest")


@click.command("delete")
@click.argument("batch")
@click.option("--now", "is_now", is_flag=True, help="Remove its bytes before the command returns.")
@where_options
def delete(batch: str, is_now: bool, where: Where) -> None:
    """Delete BATCH (an id, or the path of a run's output), which has ended: nobody can read it any more.

    Downloads under way finish: its bytes stay for an hour (limits.download_grace_s), its record without them for a day
    (limits.tombstone_s), and are then removed by any service or runner of the store. With --now the bytes go at once,
    and the record keeps no more than its id, its tenant and its times; downloads under way break off with an error. A
    batch that is deleted already can be deleted with --now as well.

    Files that you hold yourself stay: OUT of a run, uploaded files, the files in inbox/, outbox/ and done/.
    """
    with where.connected(batch, writes=True) as connection:
        batch_id = connection.delete(batch, now=is_now)
    with report_lost_output(f"the batch {batch_id} is deleted all the same"):
        click.echo(f"{batch_id} is deleted" + (", and so are its bytes" if is_now else ""))
