"""Numbers and progress as people read them. Knows no batch."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from batchfile.local.progress import Snapshot

PLAIN_S = 10.0  # between two lines where stderr is no terminal
LIVE_S = 0.25


def duration(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def counted(num: int, noun: str) -> str:
    """`1 request`, `2,000 requests`."""
    return f"{num:,} {noun}" if num == 1 else f"{num:,} {noun}s"


def line(snap: Snapshot) -> str:
    """One line of progress."""
    if snap.is_loading:
        return f"loading the engine, {duration(snap.elapsed_s)}; {snap.done:,}/{snap.total:,} requests are done"
    if snap.down_s:
        return (
            f"the endpoint has been down for {duration(snap.down_s)}, waiting for it; "
            f"{snap.done:,}/{snap.total:,} requests are done"
        )
    share = 100 * snap.done // max(1, snap.total)
    parts = [
        f"{snap.done:,}/{snap.total:,} requests ({share} %)",
        f"{snap.failed:,} failed",
        f"{snap.input_rate:,.0f} tok/s in",
        f"{snap.output_rate:,.0f} tok/s out",
        f"{100 * snap.cache_hit_rate:.0f} % cached",
        duration(snap.elapsed_s),
    ]
    if snap.eta_s is not None and snap.done < snap.total:
        parts.append(f"ETA {duration(snap.eta_s)}")
    return ", ".join(parts)


class ProgressLine:
    """Shows snapshots on stderr until it is left: a live line on a terminal, else a line every 10 s, or JSON lines.

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
        from rich.text import Text

        console = Console(stderr=True, highlight=False)
        with Live(console=console, auto_refresh=False, transient=False) as live:
            while True:
                is_over = self._over.wait(LIVE_S)
                snap = self._look()
                if snap is not None:
                    live.update(Text(line(snap), style="bold" if snap.failed == 0 else "yellow"), refresh=True)
                if is_over:
                    return

    def _show_plain(self) -> None:
        shown_at = time.monotonic()
        while not self._over.wait(0.1 if self._is_json else 0.2):
            if time.monotonic() - shown_at >= PLAIN_S:
                shown_at = time.monotonic()
                self._print()
        self._print()

    def _print(self) -> None:
        snap = self._look()
        if snap is not None:
            text = json.dumps({"event": "progress", **_rounded(asdict(snap))}) if self._is_json else line(snap)
            print(text, file=sys.stderr, flush=True)


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in values.items()}
