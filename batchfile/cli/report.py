"""`batchfile report`: an ended batch as one HTML file."""

import os
import sys

import click

from batchfile.cli.exits import Exit
from batchfile.cli.help import epilog
from batchfile.cli.numbers import Finite
from batchfile.cli.progress import transfer
from batchfile.cli.remote import REMOTE_EXITS, Where, check_free, exit_of_batch, where_options
from batchfile.errors import BatchFailed
from batchfile.settings import load_settings


@click.command(
    "report",
    epilog=epilog(
        "batchfile report results.jsonl -o report.html       # the run with this output",
        "batchfile report batch_4f2a91c07d3e --url https://batch.example --gpu-hour 2.50",
        exits=REMOTE_EXITS,
    ),
)
@click.argument("batch")
@click.option("-o", "--output", default="report.html", show_default=True, metavar="FILE", help="Write to FILE.")
@click.option(
    "--gpu-hour", type=Finite(min=0), metavar="USD", help="The price of a GPU per hour.  [default: the run's]"
)
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@where_options
def report(batch: str, output: str, gpu_hour: float | None, force: bool, where: Where) -> None:
    """Write a report of BATCH (an id, or the path of a run's output), which must have ended, as one HTML file.

    It shows what ran, failures by reason, tokens, times, throughput, cost, and rows to search: all of them, or a sample
    if there are many, so that the file stays below 15 MB. It loads nothing from elsewhere: send it as it is.
    """
    path = check_free(output, is_forced=force)
    price = load_settings().run.gpu_hour if gpu_hour is None else gpu_hour
    with where.connected(batch) as connection:
        found = connection.batch(batch)
        if not found.last_status.has_ended:
            click.echo(f"{found.id} has not ended yet; `batchfile watch {found.id}` shows its progress", err=True)
            sys.exit(Exit.FAILED_REQUESTS)
        try:
            with transfer(os.path.basename(path), found.results_size()) as on_bytes:
                found.report(path, gpu_hour=price, on_bytes=on_bytes)
        except BatchFailed as error:
            click.echo(str(error), err=True)
            sys.exit(Exit.FAILED_REQUESTS)
    sys.exit(exit_of_batch(found.last_status))
