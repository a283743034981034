"""Bytes on their way, for people: a bar on a terminal, else a line every few seconds of a long transfer."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from batchfile.local.display import PLAIN_S


@contextmanager
def transfer(what: str, size: int | None) -> Iterator[Callable[[int], None]]:
    """A function that is told of each piece, in bytes. `size` None: nobody knows."""
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
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
