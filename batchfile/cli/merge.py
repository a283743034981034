"""`batchfile merge`: the results of requests that were run again, joined into the results of the first run."""

import sys

import click

from batchfile import logs
from batchfile.cli.exits import Exit
from batchfile.cli.help import epilog
from batchfile.local import merge as merging
from batchfile.local.display import counted


@click.command(
    "merge",
    epilog=epilog(
        "batchfile run results.jsonl.errors.jsonl -o fixed.jsonl",
        "batchfile merge results.jsonl fixed.jsonl",
        "batchfile merge results.jsonl fixed.jsonl -o merged.jsonl",
    ),
)
@click.argument("out")
@click.argument("fixed")
@click.option("-o", "--output", metavar="NEW", help="Write the merged results to NEW, and leave OUT as it is.")
def merge(out: str, fixed: str, output: str | None) -> None:
    """Replace the results in OUT by those in FIXED with the same custom_id. The order of OUT stays.

    FIXED has the results of requests that were run separately, such as those of the errors file of OUT. A result that
    succeeded is never replaced by one that failed. The errors file, the reasons file and the receipt of OUT are brought
    up to date. Nothing changes if FIXED has an id that OUT lacks, or an id is there twice.

    To fix requests in the input itself, no merge is needed: the command of the run keeps what has succeeded, and runs
    the rest. It keeps merged results too, if the same model made them or with --reuse; in the OpenAI format it cannot,
    and keeps a copy of OUT.
    """
    logs.for_command()
    done = merging.merge(out, fixed, output)
    total = done.counts.finished
    kept = f"; {done.num_kept:,} had succeeded before and failed now, so they were kept" if done.num_kept else ""
    click.echo(f"replaced {counted(done.num_replaced, 'result')} of {total:,} in {output or out}{kept}", err=True)
    left = total - done.counts.succeeded
    click.echo(f"{done.counts.succeeded:,} of {counted(total, 'request')} have succeeded", err=True)
    if output is not None:
        click.echo(f"{output} has no receipt and no errors file", err=True)
    elif not done.has_receipt:
        click.echo(f"{out} has no receipt, so none was brought up to date", err=True)
    sys.exit(Exit.FAILED_REQUESTS if left else Exit.OK)
