"""`batchfile cancel`: end a batch early."""

import click

from batchfile.cli.batch_text import end_line
from batchfile.cli.remote import Where, where_options


@click.command("cancel")
@click.argument("batch")
@where_options
def command(batch: str, where: Where) -> None:
    """End BATCH (an id, or the path of a run's output). Finished requests keep their results."""
    with where.opened(batch, writes=True) as remote:
        before = remote.batch(batch)
        if before.has_ended:
            click.echo(f"{before.batch_id} had ended already ({before.reason})")
            return
        after = remote.cancel(batch)
    if after.has_ended:
        click.echo(end_line(after))
    else:
        click.echo(f"{after.batch_id} is ending: its runner or the service does the rest")
