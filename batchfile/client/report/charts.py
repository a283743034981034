"""The bars and axes of the report's charts, which its page draws as SVG. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from batchfile.client.report.rows import TokenCounts
from batchfile.ledger.profile import REQUEST_BOUNDS_S, Profile
from batchfile.local.display import duration

LEFT, TOP, HEIGHT = 46.0, 12.0, 128.0  # of the plot in the picture
WIDE, NARROW = 388.0, 274.0  # its width, of two and of three charts side by side
BARS_MAX = 30
MIN_SLOTS = 4  # the room of so many bars, also where there are fewer
TICKS_MAX = 4
LABELS_MAX = 5  # below a narrow chart, so that they do not overlap
SHOWN_SHARE = 0.99  # of the requests; the last bar has the rest


@dataclass(frozen=True, slots=True)
class Bar:
    x: float
    width: float
    y: float
    height: float
    tip: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """`width`: of the plot. `note`: what it shows, in words. `across`, `up`: places on the axes, and their labels."""

    title: str
    note: str
    width: float
    bars: list[Bar]
    across: list[tuple[float, str]]
    up: list[tuple[float, str]]


def nice(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, 50 ... and their fractions."""
    if value <= 0:
        return 1.0
    unit = 10.0 ** floor(log10(value))
    return next(step * unit for step in (1, 2, 5, 10) if step * unit >= value * 0.999999)


def short(value: float) -> str:
    """`950`, `1.2k`, `3M`, `0.25`."""
    for size, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{name}"
    return f"{value:.3g}"


def _chart(
    title: str,
    note: str,
    heights: Sequence[float],
    tips: Sequence[str],
    edges: Sequence[tuple[float, str]],
    room: float = NARROW,
) -> Chart:
    """`edges`: labels below the bars, each at a place counted in bars."""
    step = nice(max(heights, default=0) / TICKS_MAX)
    top = step * max(1, ceil(max(heights, default=0) / step))
    width = room / max(MIN_SLOTS, len(heights))
    gap = min(2.0, width / 4)
    bars = [
        Bar(
            round(LEFT + n * width + gap / 2, 2),
            round(width - gap, 2),
            round(TOP + HEIGHT * (1 - height / top), 2),
            round(HEIGHT * height / top, 2),
            tip,
        )
        for n, (height, tip) in enumerate(zip(heights, tips, strict=True))
        if height
    ]
    ticks = range(round(top / step) + 1)
    up = [(round(TOP + HEIGHT * (1 - n * step / top), 2), short(n * step)) for n in ticks]
    return Chart(
        title=title,
        note=note,
        width=room,
        bars=bars,
        across=[(round(LEFT + at * width, 2), text) for at, text in edges],
        up=up,
    )


def token_chart(title: str, seen: TokenCounts) -> Chart | None:
    """None if no tokens are known."""
    if not seen.num.total():
        return None
    longest, end = max(seen.num), max(1, seen.quantile(SHOWN_SHARE))
    each = max(1, int(nice(end / BARS_MAX)))
    num = end // each + 1
    heights = [0] * num
    for tokens, count in seen.num.items():
        heights[min(tokens // each, num - 1)] += count
    tips = [f"{n * each:,} to {(n + 1) * each - 1:,} tokens: {count:,}" for n, count in enumerate(heights)]
    is_cut = longest >= num * each
    if is_cut:
        tips[-1] = f"{(num - 1) * each:,} tokens and more: {heights[-1]:,}"
    label_each = ceil(num / LABELS_MAX)
    edges = [(float(n), short(n * each)) for n in range(0, num + 1, label_each)]
    note = f"median {seen.quantile(0.5):,} · 95 % up to {seen.quantile(0.95):,} · longest {longest:,}"
    return _chart(title, note + (" (in the last bar)" if is_cut else ""), heights, tips, edges)


def time_chart(profile: Profile | None) -> Chart | None:
    counts = () if profile is None else profile.request_s
    seen = [n for n, count in enumerate(counts) if count]
    if not seen:
        return None
    first, last = max(0, seen[0] - 1), min(len(counts) - 1, seen[-1] + 1)
    names = [_bound(n) for n in range(len(counts))]
    tips = [f"{names[n]}: {counts[n]:,}" for n in range(first, last + 1)]
    label_each = ceil((last + 1 - first) / LABELS_MAX)
    edges = [(n - first + 0.5, names[n]) for n in range(first, last + 1, label_each)]
    note = f"half took {names[_quantile(counts, 0.5)]} · 95 % took {names[_quantile(counts, 0.95)]}"
    heights = [float(count) for count in counts[first : last + 1]]
    return _chart("Time of a request in the engine", note, heights, tips, edges)


def _bound(n: int) -> str:
    return f"≤ {REQUEST_BOUNDS_S[n]:g} s" if n < len(REQUEST_BOUNDS_S) else f"> {REQUEST_BOUNDS_S[-1]:g} s"


def _quantile(counts: Sequence[int], share: float) -> int:
    left = share * sum(counts)
    for n, count in enumerate(counts):
        left -= count
        if left <= 0:
            return n
    return len(counts) - 1


def rate_charts(profile: Profile | None) -> list[Chart]:
    """Requests and output tokens per second."""
    if profile is None:
        return []
    steps = [("Requests per second", "requests/s", profile.requests)]
    steps += [("Output tokens per second", "tokens/s", profile.output_tokens)] * any(profile.output_tokens)
    return [_rates(title, unit, each, profile.step_s) for title, unit, each in steps]


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _short_time(seconds: float) -> str:
    return duration(seconds) if seconds >= 1 else f"{seconds:.2g} s"


def _rates(title: str, unit: str, steps: Sequence[int], step_s: float) -> Chart:
    rates = [num / step_s for num in steps]
    tips = [f"{_short_time(n * step_s)}: {_rate(rate)} {unit}" for n, rate in enumerate(rates)]
    total_s = step_s * len(steps)
    places = [0.0, 0.25, 0.5, 0.75, 1.0] if total_s >= 8 else [0.0, 1.0]
    edges = [(share * len(steps), duration(share * total_s) if share else "start") for share in places]
    note = f"average {_rate(sum(steps) / total_s)} · peak {_rate(max(rates))} · in steps of {_short_time(step_s)}"
    return _chart(title, note, rates, tips, edges, WIDE)
