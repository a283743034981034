"""`batchfile cancel`: end a batch early."""

import click

from batchfile.cli.batch_text import end_line
from batchfile.cli.remote import Where, where_options
from batchfile.cli.stdout import report_lost_output


@click.command("cancel")
@click.argument("batch")
@where_options
def command(batch: str, where: Where) -> None:
    """End BATCH (an id, or the path of a run's output). Finished requests keep their results."""
    with where.connected(batch, writes=True) as connection:
        found = connection.batch(batch)
        if found.last_status.has_ended:
            click.echo(f"{found.id} had ended already ({found.last_status.reason})")
            return
        after = found.cancel()
    with report_lost_output(f"the batch {after.batch_id} is canceled all the same"):
        if after.has_ended:
            click.echo(end_line(after))
        else:
            click.echo(f"{after.batch_id} is ending: its runner or the service does the rest")
