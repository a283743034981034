"""`batchfile status`: how far a batch is, derived from its records."""

import json
import time

import click

from batchfile.cli.batch_text import as_json, pool_line, status_line
from batchfile.cli.remote import Where, where_options


@click.command("status")
@click.argument("batch")
@click.option("--json", "is_json", is_flag=True, help="One JSON line instead of words.")
@where_options
def command(batch: str, is_json: bool, where: Where) -> None:
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
