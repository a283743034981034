"""Shows numbers and progress: a bar on a terminal, elsewhere a line every few seconds, or JSON. Knows no batch."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from batchfile.local.progress import Snapshot
from batchfile.types import Counts

if TYPE_CHECKING:
    from rich.console import RenderableType

PLAIN_S = 10.0  # between two lines where stderr is not a terminal
LOOK_S = 0.25
BAR_CELLS = 30
QUIET_S = 5.0  # a step that has been running for this long is mentioned


def duration(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def dollars(usd: float) -> str:
    """`$3.40`; below a cent `$0.0034`."""
    return f"${usd:,.2f}" if usd >= 0.01 or not usd else f"${usd:.4f}"


def printable(text: str) -> str:
    """On one line, with ? for control characters, which could move the terminal's cursor."""
    return "".join(char if char.isprintable() else "?" for char in text)


def counted(num: int, noun: str) -> str:
    """`1 request`, `2,000 requests`."""
    return f"{num:,} {noun}" if num == 1 else f"{num:,} {noun}s"


def outcomes(counts: Counts) -> list[str]:
    """Requests without an answer by how they ended: `2 rejected`, `1 failed`, ..."""
    found = {
        "rejected": counts.rejected,
        "failed": counts.failed,
        "canceled": counts.canceled,
        "expired": counts.expired,
    }
    return [f"{num:,} {what}" for what, num in found.items() if num]


def about(seconds: float) -> str:
    """A time that is an estimate: `less than 5 s`, `about 40 s`, `about 12 min`."""
    if seconds < 5:
        return "less than 5 s"
    if seconds < 55:
        return f"about {5 * round(seconds / 5)} s"
    minutes = max(1, round(seconds / 60))
    if minutes < 60:
        return f"about {minutes} min"
    return f"about {minutes // 60} h {minutes % 60:02d} min"


def line(snap: Snapshot) -> str:
    """One line of progress."""
    if snap.is_loading or snap.down_s:
        return state(snap)
    counts = f"{snap.done:,}/{snap.total:,} requests ({100 * snap.done // max(1, snap.total)} %)"
    return ", ".join([counts, *_files(snap), *details(snap), duration(snap.elapsed_s), *_left(snap)])


def state(snap: Snapshot) -> str:
    """Why nothing is computed at the moment."""
    done = f"{snap.done:,}/{snap.total:,} requests are done"
    if snap.is_loading:
        return f"loading the model, {duration(snap.elapsed_s)}; {done}"
    return f"waiting for the endpoint, unavailable for {duration(snap.down_s)}; {done}"


def details(snap: Snapshot) -> list[str]:
    """The state of the engine. Unknown rates are left out instead of shown as 0."""
    is_done = snap.done == snap.total
    parts = outcomes(Counts(errored=snap.failed + snap.rejected, rejected=snap.rejected))
    if snap.num_running or snap.num_waiting:
        parts.append(f"{snap.num_running:,} running, {snap.num_waiting:,} waiting")
    if snap.input_tokens:
        parts.append(f"{snap.input_tokens:,} tokens in{'' if is_done else _rate(snap.input_rate)}")
    if snap.output_tokens:
        parts.append(f"{snap.output_tokens:,} tokens out{'' if is_done else _rate(snap.output_rate)}")
    if snap.usage_unknown:
        parts.append(f"usage unknown for {counted(snap.usage_unknown, 'result')}")
    if snap.cache_hit_rate >= 0.005:
        parts.append(f"{100 * snap.cache_hit_rate:.0f} % cached")
    if snap.cost_usd is not None:
        parts.append(f"{dollars(snap.cost_usd)} so far")
    if snap.quiet_s >= QUIET_S:
        parts.append(f"in one step for {duration(snap.quiet_s)}")
    if is_done:
        parts.append("writing the results")
    return parts


def _files(snap: Snapshot) -> list[str]:
    return [f"{snap.num_files_done:,}/{snap.num_files:,} files"] if snap.num_files > 1 else []


def _rate(rate: float) -> str:
    if rate < 0.05:
        return ""
    return f" ({rate:,.0f} tok/s)" if rate >= 9.95 else f" ({rate:.1f} tok/s)"


def _left(snap: Snapshot) -> list[str]:
    is_known = snap.eta_s is not None and snap.done < snap.total
    return [f"{about(snap.eta_s or 0)} left"] if is_known else []


def say(text: str) -> None:
    """Print a line on stderr, above a live display. click.echo would write past it, into the line that it redraws."""
    print(text, file=sys.stderr, flush=True)


def is_terminal() -> bool:
    """Can stderr show a live display?"""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


class Progress:
    """Shows snapshots until its `with` block ends. Other output to sys.stderr is shown on separate lines.

    `look` is called in a separate thread; it returns None if there is nothing to show yet.
    """

    def __init__(self, look: Callable[[], Snapshot | None], *, is_json: bool) -> None:
        self._look = look
        self._is_json = is_json
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._show_forever, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _show_forever(self) -> None:
        if is_terminal() and not self._is_json:
            self._show_live()
        else:
            self._show_plain()

    def _show_live(self) -> None:
        from rich.console import Console
        from rich.live import Live

        # Live replaces sys.stderr, and shows other output above the bar.
        console = Console(stderr=True, highlight=False)
        with Live(console=console, auto_refresh=False, redirect_stdout=False) as live:
            while True:
                is_over = self._over.wait(LOOK_S)
                snap = self._look()
                if snap is not None and not (is_over and snap.is_loading):
                    live.update(picture(snap), refresh=True)
                if is_over:
                    return

    def _show_plain(self) -> None:
        shown_at = time.monotonic()
        snap = None
        while not self._over.wait(LOOK_S):
            snap = self._look()  # also between the lines: the estimates need regular looks
            if time.monotonic() - shown_at >= PLAIN_S:
                shown_at = time.monotonic()
                self._print(snap)
        snap = self._look()
        if snap is not None and not snap.is_loading:  # else the run ended before an engine was loaded
            self._print(snap)

    def _print(self, snap: Snapshot | None) -> None:
        if snap is not None:
            text = json.dumps({"event": "progress", **_rounded(asdict(snap))}) if self._is_json else line(snap)
            print(text, file=sys.stderr, flush=True)


def picture(snap: Snapshot) -> "RenderableType":
    """Two lines for a terminal: the bar and the time, then what the engine does."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    if snap.is_loading or snap.down_s:
        return Text(state(snap), no_wrap=True, overflow="ellipsis")
    share = snap.done / max(1, snap.total) if snap.share is None else snap.share
    left = f", {about(snap.eta_s)} left" if snap.eta_s is not None and snap.done < snap.total else ""
    # The percentage is the bar's, not that of the requests: those in flight count with their tokens.
    counts = f"{100 * share:.0f} %, {snap.done:,}/{snap.total:,} requests"
    text = ", ".join([counts, *_files(snap), duration(snap.elapsed_s)]) + left
    # Until the share is known, the bar only moves.
    bar = ProgressBar(total=1.0, completed=share, width=BAR_CELLS, pulse=snap.share is None and not snap.done)
    row = Table.grid(padding=(0, 1))
    row.add_column(width=BAR_CELLS)
    row.add_column(no_wrap=True, overflow="ellipsis")
    row.add_row(bar, text)
    style = "yellow" if snap.failed or snap.rejected else "dim"
    return Group(row, Text(", ".join(details(snap)), style=style, no_wrap=True, overflow="ellipsis"))


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in values.items()}
