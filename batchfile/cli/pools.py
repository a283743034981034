"""The commands that show the pools and runners of a service or a store."""

import json
import time

import click
import msgspec

from batchfile.cli.batch_text import table
from batchfile.cli.help import epilog
from batchfile.cli.remote import Where, place_options
from batchfile.ledger.batch_status import Pool
from batchfile.ledger.records import HeartbeatRecord
from batchfile.local.display import duration, printable

RUNNERS = ("POOL", "RUNNER", "STATE", "AGE", "IN FLIGHT", "RATE", "TOKENS OUT", "P95", "FAILED", "MODEL", "HOST")
POOLS = ("POOL", "STATE", "RUNNERS", "WAITING", "OPEN BATCHES", "ENGINE", "MODEL", "STAGES")


@click.command(
    "runners",
    epilog=epilog(
        "batchfile runners --pool mistral",
        "batchfile runners --url https://batch.example --json",
    ),
)
@click.option("--pool", help="Only runners of this pool.")
@click.option("--json", "is_json", is_flag=True, help="Print one JSON line for each runner.")
@place_options
def runners(pool: str | None, is_json: bool, where: Where) -> None:
    """List the live runners of a service or a store, by pool.

    Rates are of the last minute with work. Below, for a store: the batches that a runner has set aside, and why.
    """
    with where.opened() as remote:
        found = [runner for runner in remote.runners() if pool in {None, runner.pool}]
    if is_json:
        for runner in found:
            click.echo(msgspec.json.encode(runner))
        return
    _echo(RUNNERS, [_runner_cells(runner, time.time()) for runner in found])
    for runner in found:
        for batch_id, why in runner.set_aside.items():
            click.echo(printable(f"{runner.runner_id} set {batch_id} aside: {why}"))
    if not found:
        click.echo("no live runners" + ("" if pool is None else f" of the pool {pool}"), err=True)


@click.command(
    "pools",
    epilog=epilog(
        "batchfile pools",
        "batchfile pools --url https://batch.example --json",
    ),
)
@click.option("--json", "is_json", is_flag=True, help="Print one JSON line for each pool.")
@place_options
def pools(is_json: bool, where: Where) -> None:
    """List the pools of a service or a store: their live runners, and the requests that wait for them.

    A pool is down if it has no runner that can answer requests. Over a store, these are the pools of your settings, and
    those for which requests wait or of which a runner has reported within a day.
    """
    with where.opened() as remote:
        found = remote.pools()
    if is_json:
        for pool in found:
            click.echo(json.dumps({**msgspec.to_builtins(pool), "is_up": pool.is_up}))
        return
    _echo(POOLS, [_pool_cells(pool) for pool in found])
    if not found:
        click.echo("no pools: no request waits, and no runner has reported within a day", err=True)


def _echo(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    for line in table(header, [tuple(map(printable, row)) for row in rows]):
        click.echo(line)


def _runner_cells(runner: HeartbeatRecord, now: float) -> tuple[str, ...]:
    return (
        runner.pool,
        runner.runner_id,
        runner.state,
        duration(max(0.0, now - runner.started_at)),
        f"{runner.in_flight:,}/{runner.num_slots:,}" if runner.num_slots else f"{runner.in_flight:,}",
        f"{runner.requests_per_s:,.1f}/s" if runner.requests_per_s else "",
        f"{runner.output_tokens_per_s:,.0f}/s" if runner.output_tokens_per_s else "",
        "" if runner.latency_p95_s is None else duration(runner.latency_p95_s),
        f"{runner.totals.failed:,}" if runner.totals.failed else "",
        runner.model,
        runner.host,
    )


def _pool_cells(pool: Pool) -> tuple[str, ...]:
    return (
        pool.name,
        "up" if pool.is_up else "down",
        ", ".join(f"{num:,} {state}" for state, num in sorted(pool.runners.items())),
        f"{pool.pending_requests:,}",
        f"{pool.open_batches:,}",
        pool.engine,
        pool.model,
        ", ".join(pool.stages),
    )
