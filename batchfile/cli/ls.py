"""`batchfile ls`: the batches of a service or a store, newest first."""

import json
from itertools import islice

import click

from batchfile.cli.batch_text import as_json, list_lines
from batchfile.cli.numbers import Whole
from batchfile.cli.remote import Where, where_options

PAGE = 100  # batches whose columns are as wide


@click.command("ls")
@click.option("-n", "--limit", type=Whole(min=1), default=50, show_default=True, help="At most so many.")
@click.option("--json", "is_json", is_flag=True, help="One JSON line for each batch.")
@where_options
def command(limit: int, is_json: bool, where: Where) -> None:
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
