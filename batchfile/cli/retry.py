"""`batchfile retry`: what did not succeed, once more."""

import sys

import click

from batchfile.cli.remote import CREATE_EXITS, Where, where_options
from batchfile.cli.saving import check_free
from batchfile.cli.stdout import report_lost_output
from batchfile.cli.submit import finish
from batchfile.local.display import counted


@click.command("retry", epilog=CREATE_EXITS)
@click.argument("batch")
@click.option("--wait", is_flag=True, help="Wait for the new batch's end; the exit code says how it went.")
@click.option("-o", "--output", metavar="OUT", help="Wait, and write its results to OUT (.jsonl or .parquet; -).")
@where_options
def command(batch: str, wait: bool, output: str | None, where: Where) -> None:
    """Make a new batch of the requests of BATCH that did not succeed, and print its id.

    BATCH must have ended, and stays as it is. The new one bears `retry_of` in its metadata.
    """
    path = None if output is None else check_free(output)
    with where.connected(batch, writes=True) as connection:
        made = connection.batch(batch).rerun_failed()
        with report_lost_output(f"the batch {made.id} is made; do not retry {batch} again"):
            click.echo(made.id, err=path == "-")
        click.echo(f"it runs {counted(made.last_status.total, 'request')} of {batch} again", err=True)
        if wait or path is not None:
            sys.exit(finish(made, path))
