"""Writes the report of an ended batch: one HTML file that loads nothing and needs nothing else."""

import base64
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.resources import files

from jinja2 import Environment
from markupsafe import Markup

from batchfile import __version__
from batchfile.client.base import BatchStatus
from batchfile.client.report.charts import rate_charts, short, time_chart, token_chart
from batchfile.client.report.rows import Gathered, gather
from batchfile.lines.framing import iter_lines
from batchfile.lines.result import RESULT_BYTES_MAX
from batchfile.local.display import dollars, duration
from batchfile.local.options import ENGINE, ENGINE_VERSION, INPUT, OUTPUT
from batchfile.local.outputs import read_receipt
from batchfile.local.progress import cost_usd
from batchfile.local.receipt import Receipt
from batchfile.types import FailureGroup

OUTCOMES = ("succeeded", "failed", "rejected", "canceled", "expired")
RUN_FACTS = {INPUT: "Input", OUTPUT: "Output", ENGINE: "Engine", ENGINE_VERSION: "Engine version"}


def write_report(
    batch: BatchStatus,
    results: Iterable[bytes],
    path: str,
    *,
    gpu_hour: float | None,
    on_bytes: Callable[[int], None],
) -> None:
    """`results`: the native result lines of the batch, in chunks. `gpu_hour`: the price of a GPU; None: the cost that
    the receipt of its run has, if there is one. `on_bytes` is called with the size of each chunk.
    """
    lines = iter_lines(_counted(results, on_bytes), line_bytes_max=RESULT_BYTES_MAX)
    found = gather(line.data or b"" for line in lines)
    receipt = read_receipt(batch.metadata.get(OUTPUT, ""))
    receipt = receipt if receipt is not None and receipt.batch_id == batch.batch_id else None
    style, script = _asset("page.css"), _asset("page.js")
    histograms = [
        token_chart("Input tokens of a request", found.input_tokens),
        token_chart("Output tokens of a request", found.output_tokens),
        time_chart(batch.profile),
    ]
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_asset("page.html"))
    page.globals.update(date=_date, counted="{:,}".format)
    page.stream(
        batch=batch,
        title=_title(batch),
        policy=f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; base-uri 'none'; "
        "form-action 'none'",
        style=Markup(style),
        script=Markup(script),
        outcomes=_outcomes(batch),
        verdict=_verdict(batch),
        failures=_advised(batch.failures),
        tiles=_tiles(batch, gpu_hour, receipt),
        charts=[rate_charts(batch.profile), [chart for chart in histograms if chart is not None]],
        facts=_facts(batch, found, receipt),
        other_failures=batch.counts.finished - batch.succeeded - sum(group.num_requests for group in batch.failures),
        rows=map(Markup, (row.decode() for row in found.rows)),
        shown=_shown(found),
        version=__version__,
    ).dump(path, encoding="utf-8")


def _counted(chunks: Iterable[bytes], on_bytes: Callable[[int], None]) -> Iterator[bytes]:
    for chunk in chunks:
        on_bytes(len(chunk))
        yield chunk


def _asset(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """What a content security policy calls this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _date(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _title(batch: BatchStatus) -> str:
    name = batch.inbox_path or batch.metadata.get(OUTPUT) or batch.batch_id
    return name.rpartition("/")[2]


def _verdict(batch: BatchStatus) -> str:
    if batch.is_all_succeeded:
        return "All succeeded"
    if batch.reason not in {None, "completed"}:
        return f"Ended early: {batch.reason}"
    return f"{batch.total - batch.succeeded:,} did not succeed"


def _advised(failures: Sequence[FailureGroup]) -> list[tuple[FailureGroup, str]]:
    """With its advice once for each type."""
    first = {group.type: group for group in reversed(failures)}
    return [(group, group.advice if first[group.type] is group else "") for group in failures]


def percent(num: int, total: int) -> str:
    """Rounded down, so that only all are 100 %."""
    return f"{num * 10_000 // total / 100:g} %"


def _shown(found: Gathered) -> str:
    """How many of the rows are in the page, and of which kinds some are left out."""
    samples = {"that succeeded": found.succeeded, "that failed": found.failed, "that ended early": found.ended_early}
    if len(found.rows) == found.num:
        return f"All {found.num:,} results."
    parts = [f"{len(one.rows):,} of {one.num_offered:,} {what}" for what, one in samples.items() if one.num_offered]
    return f"A sample, evenly spread: {', '.join(parts)}."


def _outcomes(batch: BatchStatus) -> list[tuple[str, int, float, float]]:
    """Of each outcome that occurs: its name and number, and where its part of the bar is, in percent."""
    found, x = list[tuple[str, int, float, float]](), 0.0
    for name in OUTCOMES:
        num: int = getattr(batch.counts, name)
        share = 100 * num / max(1, batch.counts.finished)
        if num:
            found.append((name, num, round(x, 3), round(share, 3)))
        x += share
    return found


def _tiles(batch: BatchStatus, gpu_hour: float | None, receipt: Receipt | None) -> list[tuple[str, str, str]]:
    """Name, figure, and what explains it."""
    lasted = max(0.0, (batch.ended_at or batch.updated_at) - batch.created_at)
    usage, total = batch.usage, max(1, batch.total)
    unknown = f"unknown for {usage.unknown:,} results" if usage.unknown else ""
    rate = batch.counts.finished / lasted if lasted else 0.0
    tiles = [
        ("Succeeded", percent(batch.succeeded, total), f"{batch.succeeded:,} of {batch.total:,} requests"),
        ("Time", duration(lasted), f"{rate:,.1f} requests/s" if rate else ""),
        ("Input tokens", short(usage.input_tokens), unknown or f"{usage.input_tokens / total:,.0f} a request"),
        ("Output tokens", short(usage.output_tokens), unknown or f"{usage.output_tokens / total:,.0f} a request"),
    ]
    if usage.input_tokens:
        share = 100 * usage.cached_tokens / usage.input_tokens
        tiles.append(("Prefix cache", f"{share:.0f} %", f"{usage.cached_tokens:,} input tokens from the cache"))
    known = None if receipt is None else receipt.cost_usd
    cost = known if gpu_hour is None else cost_usd(batch.gpu_s, gpu_hour)
    if cost is not None:
        tiles.append(("Cost", dollars(cost), f"{dollars(1000 * cost / total)} for 1,000 requests"))
    elif batch.gpu_s:
        tiles.append(("GPU time", duration(batch.gpu_s), "--gpu-hour shows the cost"))
    if batch.num_reused:
        tiles.append(("Reused", f"{batch.num_reused:,}", "results of earlier batches, without tokens"))
    return tiles


def _facts(batch: BatchStatus, found: Gathered, receipt: Receipt | None) -> list[tuple[str, str]]:
    """What ran, by name."""
    reasons = found.stop_reasons.most_common(8)
    facts = {
        "Batch": batch.batch_id,
        "Ended": "" if batch.reason is None else batch.reason + (f": {batch.detail}" if batch.detail else ""),
        "Model": ", ".join(f"{name} ({num:,})" for name, num in found.models.most_common()),
        **{title: batch.metadata.get(name, "") for name, title in RUN_FACTS.items()},
        "Inbox file": batch.inbox_path or "",
        "Stage": batch.stage or "",
        "Input format": batch.dialect,
        "Created": _date(batch.created_at),
        "Finished": "" if batch.ended_at is None else _date(batch.ended_at),
        "GPU time": duration(batch.gpu_s) if batch.gpu_s else "",
        "Stop reasons": ", ".join(f"{name} ({num:,})" for name, num in reasons),
        "Not reused": batch.reuse_note or "",
        "Merged since": f"{receipt.merged:,} results, not shown here" if receipt and receipt.merged else "",
        **{f"metadata.{name}": value for name, value in batch.metadata.items() if not name.startswith("run.")},
    }
    return [(name, value) for name, value in facts.items() if value]
