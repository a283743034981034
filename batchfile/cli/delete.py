"""`batchfile delete`: an ended batch, and its bytes."""

import click

from batchfile.cli.remote import Where, where_options
from batchfile.cli.stdout import report_lost_output


@click.command("delete")
@click.argument("batch")
@click.option("--now", "is_now", is_flag=True, help="Remove its bytes before the command returns.")
@where_options
def command(batch: str, is_now: bool, where: Where) -> None:
    """Delete BATCH (an id, or the path of a run's output), which has ended: nobody can read it any more.

    Downloads under way finish: its bytes stay for an hour (limits.download_grace_s), its record without them for a day
    (limits.tombstone_s), and are then removed by any service or runner of the store. With --now the bytes go at once,
    and the record keeps no more than its id, its tenant and its times; downloads under way break off with an error. A
    batch that is deleted already can be deleted with --now as well.

    Files that you hold yourself stay: OUT of a run, uploaded files, the files in inbox/, outbox/ and done/.
    """
    with where.connected(batch, writes=True) as connection:
        batch_id = connection.delete(batch, now=is_now)
    with report_lost_output(f"the batch {batch_id} is deleted all the same"):
        click.echo(f"{batch_id} is deleted" + (", and so are its bytes" if is_now else ""))
