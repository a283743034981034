"""Shows numbers and progress: a bar on a terminal or in a notebook, elsewhere a line every few seconds, or JSON.

Knows no batch.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Self

from batchfile.local.progress import Snapshot
from batchfile.types import Counts, FailureGroup

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


def from_here(path: str) -> str:
    """As a path relative to the current folder, where it is shorter."""
    try:
        return min(path, os.path.relpath(path), key=len)
    except OSError:  # the current folder was removed
        return path


def outcomes(counts: Counts) -> list[str]:
    """Requests without an answer by how they ended: `2 rejected`, `1 failed`, ..."""
    found = {
        "rejected": counts.rejected,
        "failed": counts.failed,
        "canceled": counts.canceled,
        "expired": counts.expired,
    }
    return [f"{num:,} {what}" for what, num in found.items() if num]


def failure_lines(failures: Sequence[FailureGroup], counts: Counts, *, num_max: int | None = None) -> list[str]:
    """The reasons why requests did not succeed, each with an example, and what to do about it."""
    lines, advised, shown = list[str](), set[str](), failures[:num_max]
    for group in shown:
        status = "" if group.http_status is None else f" {group.http_status}"
        where = "" if group.line is None else f"; for example line {group.line:,}"
        if group.custom_id is not None:
            where += f" ({printable(group.custom_id)})"
        if group.example and group.example != group.message and where:
            where += f": {printable(group.example)}"
        lines.append(f"{group.num_requests:,} {printable(group.type)}{status}: {printable(group.message)}{where}")
        if group.advice and group.type not in advised:
            advised.add(group.type)
            lines.append(f"    {printable(group.advice)}")
    others = counts.finished - counts.succeeded - sum(group.num_requests for group in shown)
    if others > 0 and shown:
        lines.append(f"{others:,} for other reasons")
    return lines


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
    if is_done and snap.num_files_done < snap.num_files:
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
    """Print a line on stderr, above a live display. click.echo would write past it, into the line that it redraws.

    In a notebook it is printed on stdout: on stderr it would look like an error.
    """
    print(text, file=sys.stdout if is_notebook() else sys.stderr, flush=True)


def is_notebook() -> bool:
    """Is this process the kernel of a notebook?"""
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


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
        self._last = (0, 0)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._show_forever, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _show_forever(self) -> None:
        if self._is_json:
            self._show_plain()
        elif is_notebook():
            self._show_live(_cell)
        elif is_terminal():
            self._show_live(_terminal)
        else:
            self._show_plain()

    def _show_live(self, display: Callable[[], AbstractContextManager[Callable[[Snapshot], None]]]) -> None:
        with display() as update:
            while True:
                is_over = self._over.wait(LOOK_S)
                snap = self._look()
                if snap is not None and not (is_over and snap.is_loading):
                    update(snap)
                if is_over:
                    return

    def _show_plain(self) -> None:
        shown_at = time.monotonic()
        while not self._over.wait(LOOK_S):
            snap = self._look()  # also between the lines: the estimates need regular looks
            if snap is not None and time.monotonic() - shown_at >= PLAIN_S:
                shown_at = time.monotonic()
                self.show(snap)
        snap = self._look()
        if snap is not None and not snap.is_loading:  # else the run ended before an engine was loaded
            self.show(snap)

    def show(self, snap: Snapshot) -> None:
        """As one line. Once all requests are done, only if another file is: to write the results may take a while."""
        if snap.done < snap.total or self._last != (snap.done, snap.num_files_done):
            self._last = snap.done, snap.num_files_done
            text = json.dumps({"event": "progress", **_rounded(asdict(snap))}) if self._is_json else line(snap)
            print(text, file=sys.stderr, flush=True)


@contextmanager
def _terminal() -> Iterator[Callable[[Snapshot], None]]:
    from rich.console import Console
    from rich.live import Live

    # Live replaces sys.stderr, and shows other output above the bar.
    console = Console(stderr=True, highlight=False)
    with Live(console=console, auto_refresh=False, redirect_stdout=False) as live:
        yield lambda snap: live.update(picture(snap), refresh=True)


@contextmanager
def _cell() -> Iterator[Callable[[Snapshot], None]]:
    """One output of the cell that is running, which is replaced by each update."""
    from IPython.display import display

    handle: Any = None

    def update(snap: Snapshot) -> None:
        nonlocal handle
        shown = {"text/plain": line(snap), "text/html": html(snap)}
        if handle is None:
            handle = display(shown, raw=True, display_id=True)
        else:
            handle.update(shown, raw=True)

    yield update


def picture(snap: Snapshot) -> "RenderableType":
    """Two lines for a terminal: the bar and the time, then what the engine does."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    if snap.is_loading or snap.down_s:
        return Text(state(snap), no_wrap=True, overflow="ellipsis")
    # Until the share is known, the bar only moves.
    bar = ProgressBar(total=1.0, completed=_share(snap), width=BAR_CELLS, pulse=snap.share is None and not snap.done)
    row = Table.grid(padding=(0, 1))
    row.add_column(width=BAR_CELLS)
    row.add_column(no_wrap=True, overflow="ellipsis")
    row.add_row(bar, _headline(snap))
    style = "yellow" if snap.failed or snap.rejected else "dim"
    return Group(row, Text(", ".join(details(snap)), style=style, no_wrap=True, overflow="ellipsis"))


def html(snap: Snapshot) -> str:
    """The same two lines for a notebook."""
    if snap.is_loading or snap.down_s:
        return state(snap)
    bar = f'<progress value="{_share(snap):.3f}" style="width: {BAR_CELLS}ch"></progress>'
    return f"{bar} {_headline(snap)}<br><small>{', '.join(details(snap))}</small>"


def _share(snap: Snapshot) -> float:
    """Of the bar, from 0 to 1."""
    return snap.done / max(1, snap.total) if snap.share is None else snap.share


def _headline(snap: Snapshot) -> str:
    # The percentage is the bar's, not that of the requests: those in flight count with their tokens.
    counts = f"{100 * _share(snap):.0f} %, {snap.done:,}/{snap.total:,} requests"
    return ", ".join([counts, *_files(snap), duration(snap.elapsed_s), *_left(snap)])


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in values.items()}
