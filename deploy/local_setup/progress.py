"""Shows the progress of set-up: a line for each completed step, and the progress of long ones.

On a terminal the line of the running step is rewritten about once a second; elsewhere there is a line every 10 s.
"""

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

LIVE_S = 1.0
PLAIN_S = 10.0
CLEAR_LINE = "\r\x1b[K"


def say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def size(num_bytes: int) -> str:
    """A readable size, in units of 1000."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def elapsed(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def bytes_in(folder: Path, *, from_depth: int = 0) -> int:
    """The size of a folder, which may change meanwhile. `from_depth` 1 ignores the files at its top."""
    total = 0
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    total += bytes_in(Path(entry.path), from_depth=max(from_depth - 1, 0))
                elif from_depth == 0:
                    total += entry.stat(follow_symlinks=False).st_size
    return total


@dataclass(slots=True, kw_only=True)
class Growth:
    """The growth of a folder since the start of a step. `total`: expected bytes (0: unknown).

    Keeps the maximum, because pip empties its folder before it ends.
    """

    verb: str
    folder: Path
    total: int = 0
    from_depth: int = 0
    start: int = 0
    most: int = 0

    def begin(self) -> None:
        self.start, self.most = bytes_in(self.folder, from_depth=self.from_depth), 0

    def text(self) -> str:
        self.most = max(self.most, bytes_in(self.folder, from_depth=self.from_depth) - self.start)
        return f"{size(self.most)}{f' of about {size(self.total)}' if self.total else ''} {self.verb}"


@dataclass(slots=True)
class SetupProgress:
    """One step at a time. `clock` and `out` are parameters for the tests."""

    out: TextIO = field(default_factory=lambda: sys.stderr)
    is_terminal: bool | None = None
    clock: Callable[[], float] = time.monotonic
    title: str = ""
    started: float = 0.0
    shown: float = 0.0
    watched: Sequence[Growth] = ()

    def __post_init__(self) -> None:
        if self.is_terminal is None:
            self.is_terminal = self.out.isatty() and os.environ.get("TERM") != "dumb"

    def step(self, title: str, work: Callable[[], str | None]) -> None:
        """Run one step and print one line for it: its title, its result and its duration."""
        self.title, self.started, self.watched = title, self.clock(), ()
        self.shown = self.started
        self._line(f"  {title} ...", ends=not self.is_terminal)
        try:
            note = work()
        except BaseException:
            self._line("" if self.is_terminal else f"  {title}: stopped", ends=not self.is_terminal)
            raise
        self._line(f"  {title}: {note or 'done'} ({elapsed(self.clock() - self.started)})", ends=True)

    def watch(self, *folders: Growth) -> None:
        """Show the growth of these folders in the line of the running step."""
        for one in folders:
            one.begin()
        self.watched = folders

    def tick(self) -> None:
        """Called often while a step runs; updates the line when it is due."""
        now = self.clock()
        if now - self.shown < (LIVE_S if self.is_terminal else PLAIN_S):
            return
        facts = ", ".join([*(one.text() for one in self.watched), elapsed(now - self.started)])
        self._line(f"  {self.title}: {facts}", ends=not self.is_terminal)
        self.shown = self.clock()

    def _line(self, text: str, *, ends: bool) -> None:
        if self.is_terminal:
            room = shutil.get_terminal_size().columns - 1
            text = CLEAR_LINE + (text if ends else text[:room])
        self.out.write(text + ("\n" if ends else ""))
        self.out.flush()
