"""`batchfile ls`: the batches of a store, newest first."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice

import click

from batchfile import layout
from batchfile.cli import logs
from batchfile.cli.status import as_json
from batchfile.errors import BatchDamaged
from batchfile.ledger.base import Ledger
from batchfile.ledger.status import BatchStatus, StatusReader
from batchfile.local.identity import OUTPUT
from batchfile.places import existing_ledger
from batchfile.settings import load_settings


@click.command("ls")
@click.option("--store", metavar="STORE", help="A directory or s3://bucket/prefix.  [default: .batchfile here]")
@click.option("--tenant", default="default", show_default=True, help="Whose batches.")
@click.option("-n", "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many.")
@click.option("--json", "is_json", is_flag=True, help="One JSON line for each batch.")
def command(store: str | None, tenant: str, limit: int, is_json: bool) -> None:
    """List the batches of a store, newest first."""
    logs.configure()
    ledger = existing_ledger(store, load_settings())
    found = list(islice(_statuses(ledger, tenant), limit))
    if not found and not is_json:
        click.echo(f"no batches of the tenant {tenant}; --tenant names another", err=True)
    for status in found:
        click.echo(json.dumps(as_json(status)) if is_json else _line(status))


def _statuses(ledger: Ledger, tenant: str) -> Iterator[BatchStatus]:
    reader = StatusReader(ledger)
    for entry in ledger.store.list(layout.index_prefix(tenant)):
        try:
            status = reader.read(layout.index_batch_id(entry.key))
        except BatchDamaged as error:
            click.echo(f"damaged: {error}", err=True)
            continue
        if status is not None:
            yield status


def _line(status: BatchStatus) -> str:
    batch = status.batch
    created = datetime.fromtimestamp(batch.created_at, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    state = batch.state if batch.reason in {None, "completed"} else f"{batch.state}:{batch.reason}"
    where = batch.metadata.get(OUTPUT, batch.stage or "")
    done = f"{status.counts.finished:,}/{batch.total:,}"
    return f"{batch.batch_id:<20} {created}  {state:<16} {done:>17}  {where}".rstrip()
