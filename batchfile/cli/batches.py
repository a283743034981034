"""The commands that show batches of a service or a store, fetch their results, or end them."""

import json
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice, takewhile
from typing import get_args

import click

from batchfile.cli.batch_text import as_json, below, end_line, end_lines, list_lines, status_line
from batchfile.cli.exits import Exit, report_lost_output
from batchfile.cli.help import epilog
from batchfile.cli.numbers import Since, Whole
from batchfile.cli.progress import follow_all, follow_one
from batchfile.cli.remote import REMOTE_EXITS, Where, check_free, exit_of_batch, save, where_options
from batchfile.client.base import BatchStatus
from batchfile.client.connection import Connection
from batchfile.ledger.batch_status import ShownState
from batchfile.ledger.records import EndReason
from batchfile.local.display import counted
from batchfile.local.options import EARLIER, OUTPUT, STDOUT

PAGE = 100  # batches whose columns are aligned together
LOOKED_AT_MAX = 10_000  # batches, to find those that a filter selects
STATES = [*get_args(ShownState), *get_args(EndReason)]


class _State(click.Choice[str]):
    """Also in British English, as OpenAI's API spells it."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return super().convert("canceled" if value == "cancelled" else value, param, ctx)


@click.command(
    "ls",
    epilog=epilog(
        "batchfile ls --state open --since 2h",
        "batchfile ls --url https://batch.example -n 10 --stage email",
        "batchfile ls --store s3://bucket/prefix --tenant acme --pool mistral --json",
    ),
)
@click.option("-n", "--limit", type=Whole(min=1), default=50, show_default=True, help="List at most this many.")
@click.option("--state", type=_State(STATES), help="Only batches in this state, or that ended like this.")
@click.option("--stage", help="Only batches of this stage.")
@click.option("--pool", help="Only batches that this pool works on, which have not ended.")
@click.option("--since", type=Since(), metavar="WHEN", help="Only batches created since: 90m, 2h, 7d, or a date.")
@click.option("--json", "is_json", is_flag=True, help="Print one JSON line for each batch.")
@where_options
def ls(
    limit: int,
    state: str | None,
    stage: str | None,
    pool: str | None,
    since: float | None,
    is_json: bool,
    where: Where,
) -> None:
    """List the batches of a service or a store, newest first.

    Each line has the id, creation time, age, state, progress, the requests per second since its creation, the requests
    without an answer by how they ended, and the file or stage. The filters look at the newest 10,000 batches.

    An output has one line: an earlier run of it, of which only the answers are kept, is listed with --json alone.
    """

    def is_wanted(batch: BatchStatus) -> bool:
        is_in_state = state in {None, batch.state, batch.reason}
        return is_in_state and stage in {None, batch.stage} and (pool is None or pool in batch.pools)

    num, kept = 0, list[BatchStatus]()
    with where.connected() as connection:
        newest = islice((batch.last_status for batch in connection.batches()), LOOKED_AT_MAX)
        young = takewhile(lambda batch: batch.created_at >= (since or 0.0), newest)
        listed: Iterator[BatchStatus] = young if is_json else _without_kept(young, kept)
        found = islice(filter(is_wanted, listed), limit)
        while page := list(islice(found, 1 if is_json else PAGE)):
            rows = [json.dumps(as_json(batch)) for batch in page] if is_json else list_lines(page, time.time())
            for row in rows[1:] if num and not is_json else rows:
                click.echo(row)
            num += len(page)
    if not num and not is_json:
        whose = "for this API key" if where.url else f"for the tenant {where.tenant}; --tenant selects another"
        like_these = "" if (state, stage, pool, since) == (None, None, None, None) else " that match the filters"
        click.echo(f"no batches{like_these} {whose}", err=True)
    if num_kept := sum(map(is_wanted, kept)):
        click.echo(
            f"not listed: {counted(num_kept, 'earlier run')} whose answers are kept for reuse (--json)", err=True
        )


def _without_kept(newest_first: Iterable[BatchStatus], kept: list[BatchStatus]) -> Iterator[BatchStatus]:
    """Without batches that a newer one of the same output keeps for their answers; these are added to `kept`."""
    outputs: dict[str, str | None] = {}
    for batch in newest_first:
        output = batch.metadata.get(OUTPUT)
        if EARLIER in batch.metadata:
            outputs[batch.metadata[EARLIER]] = output
        if output is not None and outputs.get(batch.batch_id) == output:
            kept.append(batch)
        else:
            yield batch


@click.command(
    "status",
    epilog=epilog(
        "batchfile status batch_4f2a91c07d3e",
        "batchfile status results.jsonl                      # the run with this output",
        "batchfile status batch_4f2a91c07d3e --url https://batch.example --json",
    ),
)
@click.argument("batch")
@click.option("--json", "is_json", is_flag=True, help="Print one JSON line instead of text.")
@where_options
def status(batch: str, is_json: bool, where: Where) -> None:
    """Show the progress of BATCH: a batch id, or the path of a run's output. `batchfile watch` follows it.

    Also shows what its pools wait for (a runner, an endpoint, a model), and why requests failed, with what to do.
    """
    with where.connected(batch) as connection:
        found = connection.batch(batch).last_status
    if is_json:
        click.echo(json.dumps(as_json(found)))
        return
    click.echo("\n".join([status_line(found, time.time()), *below(found)]))


@click.command(
    "watch",
    epilog=epilog(
        "batchfile watch                                     # all open batches of .batchfile here",
        "batchfile watch batch_4f2a91c07d3e --url https://batch.example",
        "batchfile watch --store s3://bucket/prefix",
        exits=REMOTE_EXITS,
    ),
)
@click.argument("batch", required=False)
@where_options
def watch(batch: str | None, where: Where) -> None:
    """Follow the progress of BATCH until it ends; without BATCH, of all open batches.

    On a terminal this is a live display with a strip of each pool's shards (█ done, ▒ running, · waiting), elsewhere a
    line every 10 s. If the service or the store is unavailable for a while, the command waits for it.
    """
    with where.opened(batch) as remote:
        if batch is not None:
            ended = [follow_one(Connection(lambda access: remote).batch(batch), _say_end)]
        else:
            ended = follow_all(remote, _say_end)
        if not ended:
            click.echo(f"no open batches at {remote.place}", err=True)
    sys.exit(max((exit_of_batch(one) for one in ended), default=Exit.OK))


def _say_end(batch: BatchStatus) -> None:
    click.echo("\n".join(end_lines(batch)))


@click.command(
    "tail",
    epilog=epilog(
        "batchfile tail batch_4f2a91c07d3e",
        "batchfile tail batch_4f2a91c07d3e --url https://batch.example | jq .custom_id",
        exits=REMOTE_EXITS,
    ),
)
@click.argument("batch")
@where_options
def tail(batch: str, where: Where) -> None:
    """Write the results of BATCH to stdout as they arrive, in any order, until it ends.

    Starts with the results that exist already. Each is written once, as a native result line.
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


@click.command(
    "results",
    epilog=epilog(
        "batchfile results batch_4f2a91c07d3e -o results.jsonl",
        "batchfile results batch_4f2a91c07d3e -o results.parquet --force",
        "batchfile results batch_4f2a91c07d3e --errors > failed.jsonl",
        exits=REMOTE_EXITS,
    ),
)
@click.argument("batch")
@click.option(
    "-o", "--output", default="-", metavar="OUT", help="Write to OUT (.jsonl or .parquet).  [default: stdout]"
)
@click.option("--errors", "is_errors", is_flag=True, help="Write the input lines that did not succeed, to stdout.")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@where_options
def results(batch: str, output: str, is_errors: bool, force: bool, where: Where) -> None:
    """Write the results of BATCH (an id, or the path of a run's output), in input order and in the format of its input.

    If requests did not succeed, also writes OUT.errors.jsonl with their input lines and OUT.reasons.jsonl with the
    reason of each. The same command resumes an interrupted download. Exits with 3 if BATCH has not ended.
    """
    if is_errors and output != STDOUT:
        raise click.UsageError("--errors writes to stdout; without it, -o writes these lines to OUT.errors.jsonl")
    path = check_free(output, is_forced=force)
    with where.connected(batch) as connection:
        found = connection.batch(batch)
        if not found.last_status.has_ended:
            name = found.id
            click.echo(f"{name} has not ended yet; `batchfile watch {name}` shows its progress", err=True)
            sys.exit(Exit.FAILED_REQUESTS)
        if is_errors:
            found.save_errors(sys.stdout.buffer)
            sys.stdout.buffer.flush()
        elif not save(found, path):
            sys.exit(Exit.FAILED_REQUESTS)
    sys.exit(exit_of_batch(found.last_status))


@click.command(
    "cancel",
    epilog=epilog(
        "batchfile cancel batch_4f2a91c07d3e",
        "batchfile cancel batch_4f2a91c07d3e --url https://batch.example",
    ),
)
@click.argument("batch")
@where_options
def cancel(batch: str, where: Where) -> None:
    """End BATCH (an id, or the path of a run's output) early. Finished requests keep their results."""
    with where.connected(batch, writes=True) as connection:
        found = connection.batch(batch)
        if found.last_status.has_ended:
            click.echo(f"{found.id} has already ended ({found.last_status.reason})")
            return
        after = found.cancel()
    with report_lost_output(f"the batch {after.batch_id} is canceled anyway"):
        if after.has_ended:
            click.echo(end_line(after))
        else:
            click.echo(f"{after.batch_id} is ending: its runner or the service finishes this")


@click.command(
    "delete",
    epilog=epilog(
        "batchfile delete batch_4f2a91c07d3e",
        "batchfile delete batch_4f2a91c07d3e --now --store s3://bucket/prefix",
    ),
)
@click.argument("batch")
@click.option("--now", "is_now", is_flag=True, help="Remove its data before the command returns.")
@where_options
def delete(batch: str, is_now: bool, where: Where) -> None:
    """Delete BATCH (an id, or the path of a run's output), which must have ended. It can no longer be read.

    Downloads in progress can finish: the data stays for an hour (limits.download_grace_s) and the record for a day
    (limits.tombstone_s); any service or runner of the store then removes them. With --now the data is removed at once,
    the record keeps only its id, tenant and times, and downloads in progress fail. --now also works for a batch that is
    already deleted.

    With the batch of a run, the one that it keeps of an earlier run of the same OUT is deleted too.

    Your own files stay: OUT of a run, uploaded files, and the files in inbox/, outbox/ and done/.
    """
    with where.connected(batch, writes=True) as connection:
        batch_id = connection.delete(batch, now=is_now)
    with report_lost_output(f"the batch {batch_id} is deleted anyway"):
        click.echo(f"{batch_id} is deleted" + (", and its data is removed" if is_now else ""))
