"""A run's progress on stderr: a bar on a terminal, else a line every 10 s, or JSON lines. Knows no batch."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from batchfile.local.display import PLAIN_S, about, details, duration, line, state
from batchfile.local.progress import Snapshot

if TYPE_CHECKING:
    from rich.console import RenderableType

LOOK_S = 0.25
BAR_CELLS = 30


class Progress:
    """Shows snapshots until it is left. What is written to sys.stderr meanwhile comes on lines of its own.

    `look` is called from a thread of its own; None from it means: nothing to show yet.
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
        if sys.stderr.isatty() and not self._is_json and os.environ.get("TERM") != "dumb":
            self._show_live()
        else:
            self._show_plain()

    def _show_live(self) -> None:
        from rich.console import Console
        from rich.live import Live

        # Live takes the place of sys.stderr, and writes what others write there above the bar.
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
            snap = self._look()  # also between the lines: what is estimated follows what it sees
            if time.monotonic() - shown_at >= PLAIN_S:
                shown_at = time.monotonic()
                self._print(snap)
        snap = self._look()
        if snap is not None and not snap.is_loading:  # it loads nothing any more: it ended before there was an engine
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
    text = f"{snap.done:,}/{snap.total:,} requests ({100 * share:.0f} %), {duration(snap.elapsed_s)}{left}"
    # Until the share is known, the bar only moves.
    bar = ProgressBar(total=1.0, completed=share, width=BAR_CELLS, pulse=snap.share is None and not snap.done)
    row = Table.grid(padding=(0, 1))
    row.add_column(width=BAR_CELLS)
    row.add_column(no_wrap=True, overflow="ellipsis")
    row.add_row(bar, text)
    style = "yellow" if snap.failed else "dim"
    return Group(row, Text(", ".join(details(snap)), style=style, no_wrap=True, overflow="ellipsis"))


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in values.items()}
