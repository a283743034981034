"""`batchfile status`: how far a batch is, derived from its records."""

import json
import time

import click

from batchfile.cli import logs
from batchfile.cli.shown import duration
from batchfile.ledger.status import BatchStatus, StatusReader
from batchfile.places import existing_ledger, find_batch
from batchfile.settings import load_settings

WATCH_S = 2.0


@click.command("status")
@click.argument("batch")
@click.option("--store", metavar="STORE", help="A directory or s3://bucket/prefix.  [default: .batchfile here]")
@click.option("--watch", is_flag=True, help="Look again every 2 s until the batch has ended.")
@click.option("--json", "is_json", is_flag=True, help="One JSON line instead of words.")
def command(batch: str, store: str | None, watch: bool, is_json: bool) -> None:
    """Show how far BATCH is: a batch id, or the path of a run's output."""
    logs.configure()
    ledger = existing_ledger(store, load_settings(), batch)
    batch_id = find_batch(ledger, batch).batch_id
    reader = StatusReader(ledger)
    while True:
        status = reader.read(batch_id)
        if status is None:
            raise click.ClickException(f"{batch}: was deleted")
        click.echo(json.dumps(as_json(status)) if is_json else as_text(status))
        if not watch or status.batch.state == "ended":
            return
        time.sleep(WATCH_S)


def as_json(status: BatchStatus) -> dict[str, object]:
    batch, counts, usage = status.batch, status.counts, status.usage
    return {
        "batch_id": batch.batch_id,
        "state": batch.state,
        "reason": batch.reason,
        "total": batch.total,
        "succeeded": counts.succeeded,
        "errored": counts.errored,
        "canceled": counts.canceled,
        "expired": counts.expired,
        "pending": status.pending,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cached_tokens": usage.cached_tokens,
        "shards_done": status.num_done,
        "shards_leased": status.num_leased,
        "created_at": batch.created_at,
        "updated_at": status.updated_at,
        "ended_at": batch.ended_at,
    }


def as_text(status: BatchStatus) -> str:
    batch, counts, usage = status.batch, status.counts, status.usage
    state = batch.state if batch.reason is None else f"{batch.state} ({batch.reason})"
    until = batch.ended_at or time.time()
    failed = counts.finished - counts.succeeded
    return (
        f"{batch.batch_id}  {state}  {counts.finished:,}/{batch.total:,} requests, {failed:,} failed, "
        f"{usage.input_tokens:,} tokens in, {usage.output_tokens:,} out, {duration(max(0.0, until - batch.created_at))}"
    )
