"""`batchfile tail`: results as they land."""

import sys

import click

from batchfile.cli.batch_text import end_line
from batchfile.cli.remote import REMOTE_EXITS, Where, exit_of_batch, where_options


@click.command("tail", epilog=REMOTE_EXITS)
@click.argument("batch")
@where_options
def command(batch: str, where: Where) -> None:
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
