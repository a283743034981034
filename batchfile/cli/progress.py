"""Shows the progress of batches and transfers: live on a terminal, elsewhere as a line every few seconds."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice

import click

from batchfile.cli.batch_text import below, end_line, status_line
from batchfile.client.base import BatchStatus, Remote
from batchfile.client.batch import AWAY_S_MAX, Batch
from batchfile.errors import ServiceUnavailable, StoreUnavailable
from batchfile.local.display import PLAIN_S, duration, is_terminal, say

LOOK_S = 1.0
RATE_WINDOW_S = 60.0
ROWS_MAX = 20  # batches in the live display
REASONS_MAX = 3  # for which requests did not succeed
RECENT_MAX = 1_000  # batches searched for open ones


class Rate:
    """Finished requests per second, over the last minute of looks."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque()

    def see(self, now: float, num: int) -> float:
        self._points.append((now, num))
        while len(self._points) > 2 and self._points[0][0] < now - RATE_WINDOW_S:
            self._points.popleft()
        (first_at, first), (last_at, last) = self._points[0], self._points[-1]
        return (last - first) / (last_at - first_at) if last_at > first_at else 0.0


class Follower:
    """Follows the batches that `look` finds until all have ended.

    `on_end` is called once for each ended batch: immediately, or after the live display.
    """

    def __init__(self, look: Callable[[], list[BatchStatus]], on_end: Callable[[BatchStatus], None]) -> None:
        self._look = look
        self._on_end = on_end
        self._rates: dict[str, Rate] = {}
        self._said: dict[str, tuple[float, str]] = {}  # per batch: when, in which state

    def run(self) -> list[BatchStatus]:
        """The batches as they ended. Raises: as `look`, but unavailability only after `AWAY_S_MAX`."""
        is_live = is_terminal()
        found = self._look()
        with _picture() if is_live else nullcontext(None) as picture:
            while True:
                if picture is None:
                    self._say(found)
                else:
                    picture("\n".join(self._rows(found)))
                if all(batch.has_ended for batch in found):
                    break
                time.sleep(LOOK_S)
                found = self._look_patiently()
        if is_live:
            for batch in found:
                self._on_end(batch)
        return found

    def _look_patiently(self) -> list[BatchStatus]:
        since = time.monotonic()
        is_said = False
        while True:
            try:
                return self._look()
            except (ServiceUnavailable, StoreUnavailable) as error:
                if time.monotonic() - since > AWAY_S_MAX:
                    raise
                if not is_said:
                    say(f"waiting: {error}")
                    is_said = True
                time.sleep(LOOK_S)

    def _rows(self, found: list[BatchStatus]) -> list[str]:
        rows = []
        for batch in found[:ROWS_MAX]:
            rows += [self._line(batch), *below(batch, num_reasons=REASONS_MAX)]
        if len(found) > ROWS_MAX:
            rows.append(f"and {len(found) - ROWS_MAX:,} more")
        return rows or ["no open batches"]

    def _line(self, batch: BatchStatus) -> str:
        if batch.has_ended:
            return end_line(batch)
        rate = self._rates.setdefault(batch.batch_id, Rate()).see(time.monotonic(), batch.counts.finished)
        text = status_line(batch, time.time())
        left = batch.total - batch.counts.finished
        if batch.total and not left:
            return f"{text}; assembling the results"
        return f"{text}, {rate:,.1f} requests/s, ETA {duration(left / rate)}" if rate else text

    def _say(self, found: list[BatchStatus]) -> None:
        """Print a batch's line at first, when its state changes, and every few seconds."""
        now = time.monotonic()
        for batch in found:
            at, state = self._said.get(batch.batch_id, (float("-inf"), ""))
            if state == "ended" or (state == batch.state and now - at < PLAIN_S):
                continue
            self._said[batch.batch_id] = (now, batch.state)
            if batch.has_ended:
                self._on_end(batch)
                continue
            for row in self._rows([batch]):
                click.echo(row, err=True)


def follow_one(batch: Batch, on_end: Callable[[BatchStatus], None]) -> BatchStatus:
    """One batch to its end."""
    (ended,) = Follower(lambda: [batch.status()], on_end).run()
    return ended


def follow_all(remote: Remote, on_end: Callable[[BatchStatus], None]) -> list[BatchStatus]:
    """Follow all open batches, and those created meanwhile, until no batch is open."""
    recent = list(islice(remote.batches(), RECENT_MAX))
    known = {batch.batch_id: batch for batch in recent if not batch.has_ended}
    seen = {batch.batch_id for batch in recent}

    def look() -> list[BatchStatus]:
        made = list(remote.new_batches(seen))
        for batch_id, batch in known.items():
            if not batch.has_ended:
                known[batch_id] = remote.batch(batch_id)
        known.update({batch.batch_id: batch for batch in made})
        seen.update(batch.batch_id for batch in made)
        return list(known.values())

    return Follower(look, on_end).run() if known else []


@contextmanager
def _picture() -> Iterator[Callable[[str], None]]:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(stderr=True, highlight=False), auto_refresh=False, transient=True) as live:
        yield lambda text: live.update(Text(text), refresh=True)


@contextmanager
def transfer(what: str, size: int | None) -> Iterator[Callable[[int], None]]:
    """A function to call with the size of each chunk in bytes. `size` None: unknown."""
    if is_terminal():
        with _bar(what, size) as advance:
            yield advance
        return
    num, said_at = 0, time.monotonic()

    def plain(num_bytes: int) -> None:
        nonlocal num, said_at
        num += num_bytes
        if time.monotonic() - said_at >= PLAIN_S:
            said_at = time.monotonic()
            of = "" if not size else f" of {size / 1e6:,.0f}"
            click.echo(f"{what}: {num / 1e6:,.0f}{of} MB", err=True)

    yield plain


@contextmanager
def _bar(what: str, size: int | None) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=size)
        yield lambda num_bytes: progress.advance(task, num_bytes)
