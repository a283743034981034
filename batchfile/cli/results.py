"""`batchfile results`: the results of an ended batch, from any store."""

import os
import sys

import click

from batchfile.cli import logs
from batchfile.cli.exits import Exit
from batchfile.errors import OutputTaken
from batchfile.local import outputs
from batchfile.places import existing_ledger, find_batch
from batchfile.settings import load_settings


@click.command("results")
@click.argument("batch")
@click.option(
    "-o", "--output", default="-", metavar="OUT", help="Write to OUT (.jsonl or .parquet).  [default: stdout]"
)
@click.option("--errors", "is_errors", is_flag=True, help="The input lines that did not succeed instead, to stdout.")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@click.option("--store", metavar="STORE", help="A directory or s3://bucket/prefix.  [default: .batchfile here]")
def command(batch: str, output: str, is_errors: bool, force: bool, store: str | None) -> None:
    """Write the results of BATCH (an id, or the path of a run's output), in input order.

    Exits with 3 where the batch has not ended, or where some of its requests failed.
    """
    logs.configure()
    ledger = existing_ledger(store, load_settings(), batch)
    found = find_batch(ledger, batch)
    if found.state != "ended":
        click.echo(
            f"{found.batch_id} has not ended yet; `batchfile status {found.batch_id}` shows how far it is", err=True
        )
        sys.exit(Exit.FAILED_REQUESTS)
    if found.results is None:
        click.echo(f"{found.batch_id} ended before any request ran: {found.detail or found.reason}", err=True)
        sys.exit(Exit.FAILED_REQUESTS)
    if is_errors:
        for chunk in outputs.error_bytes(ledger, found):
            sys.stdout.buffer.write(chunk)
    elif output == "-":
        outputs.write_results_to(ledger, found, sys.stdout.buffer)
    else:
        path = outputs.check_output(output, None)
        if os.path.exists(path) and not force:
            raise OutputTaken(f"{output} exists; choose another output, or add --force to replace it")
        outputs.export(ledger, found, path)
    sys.stdout.buffer.flush()
    sys.exit(Exit.OK if found.counts.succeeded == found.total else Exit.FAILED_REQUESTS)
