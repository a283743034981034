"""`batchfile watch`: one batch, or all that are open, until their end."""

import sys

import click

from batchfile.cli.batch_text import end_line
from batchfile.cli.exits import Exit
from batchfile.cli.following import follow_all, follow_one
from batchfile.cli.remote import REMOTE_EXITS, Where, exit_of_batch, where_options
from batchfile.client.base import BatchStatus
from batchfile.client.connection import Connection


@click.command("watch", epilog=REMOTE_EXITS)
@click.argument("batch", required=False)
@where_options
def command(batch: str | None, where: Where) -> None:
    """Show how far BATCH is until it has ended; without BATCH, all that are open.

    On a terminal a live picture with a strip of each pool's shards (█ done, ▒ in work, · waiting), else a line every
    10 s. A service or a store that goes away for a while is waited for.
    """
    with where.opened(batch) as remote:
        if batch is not None:
            ended = [follow_one(Connection(lambda access: remote).batch(batch), _say_end)]
        else:
            ended = follow_all(remote, _say_end)
        if not ended:
            click.echo(f"no batch is open at {remote.place}", err=True)
    sys.exit(max((exit_of_batch(one) for one in ended), default=Exit.OK))


def _say_end(batch: BatchStatus) -> None:
    click.echo(end_line(batch))
