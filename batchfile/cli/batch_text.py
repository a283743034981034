"""Formats a batch for people and scripts: as a line, a JSON object, or a strip of its shards. Pure."""

from collections.abc import Sequence
from datetime import UTC, datetime

from batchfile.client.base import BatchStatus
from batchfile.ledger.batch_status import PoolProgress
from batchfile.local.display import counted, duration
from batchfile.local.options import OUTPUT
from batchfile.types import Usage

STRIP_CELLS = 40
RIGHT = (False, False, False, True, True, True, False)  # which columns of a list are numbers
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
        "pending": batch.pending,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cached_tokens": usage.cached_tokens,
        "usage_unknown": usage.unknown,
        "reused": batch.reused,
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
    reused = f"{batch.num_reused:,} reused" if batch.num_reused else ""
    parts = [f"{counts.finished:,}/{batch.total:,} requests", reused, _failed(batch), _early(batch)]
    lasted = max(0.0, (batch.ended_at or now) - batch.created_at)
    return (
        f"{batch.batch_id}  {state}  {', '.join(filter(None, parts))}, "
        f"{usage.input_tokens:,} tokens in, {usage.output_tokens:,} out{_unknown(usage)}, {duration(lasted)}"
    )


def _unknown(usage: Usage) -> str:
    return f" (usage unknown for {counted(usage.unknown, 'result')})" if usage.unknown else ""


def list_lines(batches: Sequence[BatchStatus]) -> list[str]:
    """A line for each batch, in aligned columns."""
    rows = [_cells(batch) for batch in batches]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(_aligned(*cell) for cell in zip(row, widths, RIGHT, strict=True) if cell[1]).rstrip() for row in rows
    ]


def _cells(batch: BatchStatus) -> tuple[str, ...]:
    created = datetime.fromtimestamp(batch.created_at, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    state = batch.state if batch.reason in {None, "completed"} else f"{batch.state}:{batch.reason}"
    done = f"{batch.counts.finished:,}/{batch.total:,}"
    where = batch.inbox_path or batch.metadata.get(OUTPUT, batch.stage or "")
    if batch.state in {"damaged", "unreadable"}:
        where = batch.detail or ""
    return batch.batch_id, created, state, done, _failed(batch), _early(batch), _printable(where)


def _failed(batch: BatchStatus) -> str:
    return f"{batch.num_failed:,} failed"


def _early(batch: BatchStatus) -> str:
    """The requests that did not run because the batch ended early; empty if all ran."""
    counts = ((batch.counts.canceled, "canceled"), (batch.counts.expired, "expired"))
    return ", ".join(f"{num:,} {what}" for num, what in counts if num)


def _printable(name: str) -> str:
    """Without control characters: a file's name may contain some that move the terminal's cursor."""
    return "".join(char if char.isprintable() else "?" for char in name)


def _aligned(text: str, width: int, is_right: bool) -> str:
    return text.rjust(width) if is_right else text.ljust(width)


def end_line(batch: BatchStatus) -> str:
    text = f"{batch.batch_id}: {batch.counts.succeeded:,} of {counted(batch.total, 'request')} succeeded"
    if batch.ended_at is not None:
        text += f" in {duration(max(0.0, batch.ended_at - batch.created_at))}"
    if batch.reason not in {None, "completed"}:
        text += f"; it ended early ({batch.reason}{': ' + batch.detail if batch.detail else ''})"
    return text


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
