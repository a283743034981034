"""`batchfile ls`: the batches of a service or a store, newest first."""

import json
from itertools import islice

import click

from batchfile.cli.batch_text import as_json, list_line
from batchfile.cli.remote import Where, where_options


@click.command("ls")
@click.option("-n", "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many.")
@click.option("--json", "is_json", is_flag=True, help="One JSON line for each batch.")
@where_options
def command(limit: int, is_json: bool, where: Where) -> None:
    """List the batches of a service or a store, newest first."""
    num = 0
    with where.opened() as remote:
        for batch in islice(remote.batches(), limit):
            num += 1
            click.echo(json.dumps(as_json(batch)) if is_json else list_line(batch))
    if not num and not is_json:
        whose = "of this API key" if where.url else f"of the tenant {where.tenant}; --tenant names another"
        click.echo(f"no batches {whose}", err=True)
