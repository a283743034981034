"""Draw what a terminal shows after some commands: the picture in the README.

`python docs/demo_svg.py docs/images/demo.svg 'cat prompt.txt' 'batchfile run reviews.csv ... -o labels.csv'` runs each
command with a shell in a pseudo-terminal and writes the last screen as SVG. Linux and macOS only.
"""

import argparse
import io
import os
import pty
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH = 110  # columns of the terminal
SOME_FAILED = 3  # the exit code of a run with failed requests
# What programs send in addition to text: a move or a colour (CSI), or a control character.
CONTROL = re.compile(r"\x1b\[\??([\d;]*)([A-Za-z])|\x1b[=>]|([\r\n\b])")


def output_of(command: str) -> str:
    """What `command` writes to a terminal of WIDTH columns. Raises: SystemExit, if it fails."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update({"COLUMNS": str(WIDTH), "LINES": "40", "TERM": "xterm-256color"})
        os.execvp("sh", ["sh", "-c", command])
    data = bytearray()
    while True:
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # Linux says so when the other side is closed
            break
        if not chunk:
            break
        data += chunk
        sys.stdout.buffer.write(chunk)
        sys.stdout.flush()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status not in {0, SOME_FAILED}:
        raise SystemExit(f"{command}: exit code {status}")
    return data.decode(errors="replace")


class Screen:
    """The lines of a terminal: each cell is a character and the colour codes that were in force."""

    def __init__(self) -> None:
        self.rows: list[list[str]] = [[]]
        self._row = self._column = 0
        self._style = ""

    def write(self, text: str) -> None:
        at = 0
        for found in CONTROL.finditer(text):
            self._put(text[at : found.start()])
            at = found.end()
            self._obey(found[1] or "", found[2] or found[3] or "")
        self._put(text[at:])

    def lines(self) -> list[str]:
        return ["\x1b[0m".join([*row, ""]).rstrip() for row in self.rows]

    def _put(self, text: str) -> None:
        for character in text:
            if self._column == WIDTH:
                self._obey("", "\r")
                self._obey("", "\n")
            row = self.rows[self._row]
            row.extend(" " * (self._column + 1 - len(row)))
            row[self._column] = self._style + character
            self._column += 1

    def _obey(self, numbers: str, kind: str) -> None:
        count = int(numbers) if numbers.isdigit() else 1
        if kind == "m":
            self._style = "" if numbers in {"", "0"} else f"{self._style}\x1b[{numbers}m"
        elif kind == "\r":
            self._column = 0
        elif kind == "\b":
            self._column = max(self._column - 1, 0)
        elif kind == "\n":
            self._row += 1
            self.rows.extend([] for _ in range(self._row + 1 - len(self.rows)))
        elif kind == "A":
            self._row = max(self._row - count, 0)
        elif kind == "K":
            row = self.rows[self._row]
            del row[0 if numbers == "2" else self._column :]
        elif kind == "J":
            del self.rows[self._row + 1 :], self.rows[self._row][self._column :]


def draw(lines: list[str], title: str) -> str:
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    for line in lines:
        console.print(Text.from_ansi(line))
    svg = console.export_svg(title=title)
    return re.sub(r"\s*(@font-face \{.*?\}|<!--.*?-->)", "", svg, flags=re.S)  # no font and no page from elsewhere


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, metavar="SVG")
    parser.add_argument("commands", nargs="+", metavar="COMMAND")
    args = parser.parse_args()
    screen = Screen()
    for command in args.commands:
        screen.write(f"\x1b[1m$ {command}\x1b[0m\r\n{output_of(command)}\r\n")
    args.path.write_text(draw(screen.lines(), "batchfile"))


if __name__ == "__main__":
    main()
