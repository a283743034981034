"""`batchfile cancel`: end a batch early."""

import click

from batchfile.cli import logs
from batchfile.ledger import batches
from batchfile.places import existing_ledger, find_batch
from batchfile.settings import load_settings


@click.command("cancel")
@click.argument("batch")
@click.option("--store", metavar="STORE", help="A directory or s3://bucket/prefix.  [default: .batchfile here]")
def command(batch: str, store: str | None) -> None:
    """End BATCH (an id, or the path of a run's output). Finished requests keep their results."""
    logs.configure()
    ledger = existing_ledger(store, load_settings(), batch, is_read_only=False)
    batch_id = find_batch(ledger, batch).batch_id
    before = batches.end(ledger, batch_id, "canceled")
    if before is None:
        raise click.ClickException(f"{batch}: was deleted")
    if before.state == "ended":
        click.echo(f"{batch_id} had ended already ({before.reason})")
        return
    ended = batches.finish(ledger, batch_id, runner=f"cancel-{ledger.new_id()[:12]}")
    if ended is None:
        click.echo(f"{batch_id} is ending: its runner does the rest")
    else:
        click.echo(f"{batch_id} was canceled: {ended.counts.succeeded:,} of {ended.total:,} requests had succeeded")
