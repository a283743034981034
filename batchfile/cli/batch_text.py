"""Formats a batch for people and scripts: as a line, a JSON object, or a strip of its shards. Pure."""

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from batchfile.client.base import BatchStatus
from batchfile.ledger.batch_status import PoolProgress
from batchfile.local.display import counted, duration, failure_lines, outcomes, printable
from batchfile.local.options import OUTPUT
from batchfile.types import Usage

STRIP_CELLS = 40
ENDED_MAX = 5  # reasons that are shown when a batch ends
DONE, LEASED, WAITING = "█", "▒", "·"


def as_json(batch: BatchStatus) -> dict[str, object]:
    counts, usage = batch.counts, batch.usage
    return {
        "batch_id": batch.batch_id,
        "state": batch.state,
        "reason": batch.reason,
        "detail": batch.detail,
        "total": batch.total,
        "succeeded": counts.succeeded,
        "errored": counts.errored,
        "canceled": counts.canceled,
        "expired": counts.expired,
        "rejected": counts.rejected,
        "failures": msgspec.to_builtins(batch.failures),
        "pending": batch.pending,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cached_tokens": usage.cached_tokens,
        "usage_unknown": usage.unknown,
        "reused": batch.reused,
        "reuse_note": batch.reuse_note,
        "waiting_for": msgspec.to_builtins(batch.waiting_for),
        "shards_done": sum(pool.num_done for pool in batch.pools.values()),
        "shards_leased": sum(pool.num_leased for pool in batch.pools.values()),
        "created_at": batch.created_at,
        "updated_at": batch.updated_at,
        "ended_at": batch.ended_at,
        "stage": batch.stage,
        "inbox_path": batch.inbox_path,
        "metadata": batch.metadata,
    }


def status_line(batch: BatchStatus, now: float) -> str:
    counts, usage = batch.counts, batch.usage
    state = batch.state if batch.reason is None else f"{batch.state} ({batch.reason})"
    reused = [f"{batch.num_reused:,} reused"] if batch.num_reused else []
    parts = [f"{counts.finished:,}/{batch.total:,} requests", *reused, *outcomes(counts)]
    lasted = max(0.0, (batch.ended_at or now) - batch.created_at)
    return (
        f"{batch.batch_id}  {state}  {', '.join(parts)}, "
        f"{usage.input_tokens:,} tokens in, {usage.output_tokens:,} out{_unknown(usage)}, {duration(lasted)}"
    )


def _unknown(usage: Usage) -> str:
    return f" (usage unknown for {counted(usage.unknown, 'result')})" if usage.unknown else ""


def list_lines(batches: Sequence[BatchStatus], now: float) -> list[str]:
    """A header, and a line for each batch."""
    header = ("ID", "CREATED", "AGE", "STATE", "DONE", "RATE", "WITHOUT ANSWER", "FILE OR STAGE")
    return table(header, [_cells(batch, now) for batch in batches])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned columns, numbers on the right; without columns in which every row is empty. Empty without rows."""
    columns = [[title, *cells] for title, *cells in zip(header, *rows, strict=True) if any(cells)]
    return ["  ".join(row).rstrip() for row in zip(*map(_aligned, columns), strict=True)]


def _aligned(column: list[str]) -> list[str]:
    width = max(map(len, column))
    is_right = all(cell[:1].isdigit() for cell in column[1:] if cell)
    return [cell.rjust(width) if is_right else cell.ljust(width) for cell in column]


def _cells(batch: BatchStatus, now: float) -> tuple[str, ...]:
    created = datetime.fromtimestamp(batch.created_at, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    state = batch.state if batch.reason in {None, "completed"} else f"{batch.state}:{batch.reason}"
    done = f"{batch.counts.finished:,}/{batch.total:,}"
    where = batch.inbox_path or batch.metadata.get(OUTPUT, batch.stage or "")
    if batch.state in {"damaged", "unreadable"}:
        where = batch.detail or ""
    age = duration(max(0.0, now - batch.created_at))
    return batch.batch_id, created, age, state, done, _rate(batch), ", ".join(outcomes(batch.counts)), printable(where)


def _rate(batch: BatchStatus) -> str:
    """Requests per second since its creation, up to its end or its newest result."""
    lasted = (batch.ended_at or batch.updated_at) - batch.created_at
    return f"{batch.counts.finished / lasted:,.1f}/s" if lasted > 0 and batch.counts.finished else ""


def end_line(batch: BatchStatus) -> str:
    text = f"{batch.batch_id}: {batch.counts.succeeded:,} of {counted(batch.total, 'request')} succeeded"
    if batch.ended_at is not None:
        text += f" in {duration(max(0.0, batch.ended_at - batch.created_at))}"
    text = "; ".join(filter(None, [text, ", ".join(outcomes(batch.counts))]))
    if batch.reason not in {None, "completed"}:
        text += f"; it ended early ({batch.reason}{': ' + batch.detail if batch.detail else ''})"
    return text


def end_lines(batch: BatchStatus) -> list[str]:
    """How it ended, and why requests did not succeed."""
    return [end_line(batch), *(f"  {line}" for line in failure_lines(batch.failures, batch.counts, num_max=ENDED_MAX))]


def below(batch: BatchStatus, *, num_reasons: int | None = None) -> list[str]:
    """What belongs under the line of a batch: its pools, what they wait for, why results were not reused, and why
    requests did not succeed.
    """
    lines = [] if batch.detail is None else [printable(batch.detail)]
    lines += [pool_line(name, pool) for name, pool in sorted(batch.pools.items())]
    lines += [printable(waiting.message) for waiting in batch.waiting_for]
    lines += [] if batch.reuse_note is None else [printable(batch.reuse_note)]
    lines += failure_lines(batch.failures, batch.counts, num_max=num_reasons)
    return [f"  {line}" for line in lines]


def strip(pool: PoolProgress, num_cells: int = STRIP_CELLS) -> str:
    """Shards by state: done, running, waiting. A cell stands for one or more shards."""
    cells = min(num_cells, pool.num_shards)
    if not cells:
        return ""
    done = pool.num_done * cells // pool.num_shards
    busy = (pool.num_done + pool.num_leased) * cells // pool.num_shards - done
    if pool.num_leased and not busy and done < cells:
        busy = 1
    return DONE * done + LEASED * busy + WAITING * (cells - done - busy)


def pool_line(name: str, pool: PoolProgress) -> str:
    return f"{name}  {strip(pool)}  {pool.num_done:,}/{counted(pool.num_shards, 'shard')}, {pool.num_leased:,} running"
