"""`batchfile results`: the results of an ended batch, from a service or a store."""

import sys

import click

from batchfile.cli.exits import Exit
from batchfile.cli.remote import REMOTE_EXITS, Where, exit_of_batch, where_options
from batchfile.cli.saving import check_free, save
from batchfile.local.outputs import STDOUT


@click.command("results", epilog=REMOTE_EXITS)
@click.argument("batch")
@click.option(
    "-o", "--output", default="-", metavar="OUT", help="Write to OUT (.jsonl or .parquet).  [default: stdout]"
)
@click.option("--errors", "is_errors", is_flag=True, help="The input lines that did not succeed instead, to stdout.")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@where_options
def command(batch: str, output: str, is_errors: bool, force: bool, where: Where) -> None:
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
