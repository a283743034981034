"""`batchfile sample` and `batchfile split`: a file of the same kind with fewer lines, or several."""

import click

from batchfile import logs
from batchfile.cli.exits import report_lost_output
from batchfile.cli.help import epilog
from batchfile.cli.numbers import Whole
from batchfile.local import excerpts
from batchfile.local.display import counted
from batchfile.local.options import STDOUT
from batchfile.local.originals import opened


@click.command(
    "sample",
    epilog=epilog(
        "batchfile sample requests.jsonl -n 100 -o sample.jsonl",
        "batchfile sample requests.jsonl.gz -n 1000 --seed 7 -o sample.jsonl.gz",
        "batchfile sample reviews.csv -n 100 -o sample.csv",
    ),
)
@click.argument("input")
@click.option("-n", "num", required=True, type=Whole(min=1), metavar="N", help="How many lines.")
@click.option(
    "--seed", type=Whole(min=0), default=0, metavar="N", show_default=True, help="Another seed draws other lines."
)
@click.option("-o", "--output", required=True, metavar="OUT", help="A file that does not exist yet; - is stdout.")
def sample(input: str, num: int, seed: int, output: str) -> None:
    """Write N random lines of the file INPUT (- is stdin) to OUT, unchanged and in the order of the file.

    All lines are equally likely, and the same command draws the same ones. INPUT is JSONL, CSV or text, also .gz or
    .zst, or Parquet; a line of CSV is a row, and OUT has the header too. OUT has the format of INPUT, and is compressed
    if its name ends in .gz or .zst. For Parquet or a JSON array, it is JSONL.
    """
    logs.for_command()
    with opened(input) as original:
        num_written, total = excerpts.write_sample(original, num, seed, output)
    what = f"{num_written:,} of {counted(total, 'line')}" if num_written < total else f"all {counted(total, 'line')}"
    few = f": {original.shown} has no more" if num > total else ""
    place = "" if output == STDOUT else f" to {output}"
    click.echo(f"wrote {what}{place}{few}", err=True)


@click.command(
    "split",
    epilog=epilog(
        "batchfile split requests.jsonl --lines 100000 -o parts",
        "batchfile split requests.jsonl.zst --parts 4 -o parts    # parts/requests-0001-of-0004.jsonl.zst, ...",
    ),
)
@click.argument("input")
@click.option("--lines", type=Whole(min=1), metavar="N", help="Make parts of N lines; the last one has the rest.")
@click.option("--parts", type=Whole(min=1), metavar="N", help="Make N parts of equal size.")
@click.option("-o", "--output", "folder", required=True, metavar="FOLDER", help="A new or empty folder for the parts.")
def split(input: str, lines: int | None, parts: int | None, folder: str) -> None:
    """Split the file INPUT (- is stdin) into parts of the same format: FOLDER/NAME-0001-of-0004.jsonl and so on.

    The order and every byte of the lines are kept, so that the parts one after the other are the file again. INPUT is
    JSONL, CSV or text, also .gz or .zst, or Parquet; each part of CSV has the header. Parquet and JSON arrays become
    JSONL.
    """
    logs.for_command()
    if (lines is None) == (parts is None):
        raise click.UsageError("give either --lines N or --parts N")
    with opened(input) as original:
        names, total = excerpts.write_parts(original, folder, lines=lines, parts=parts)
    few = f", one for each line: {original.shown} has no more" if parts is not None and parts > total else ""
    with report_lost_output(f"the parts are in {folder}"):
        click.echo("\n".join(f"{folder.rstrip('/')}/{name}" for name in names))
    click.echo(f"wrote {counted(total, 'line')} to {counted(len(names), 'part')} in {folder}{few}", err=True)
