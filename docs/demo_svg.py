"""Record a command in a terminal, and draw what it shows: the picture in the README.

`python docs/demo_svg.py record docs/images/demo.json -- just demo` runs a command in a pseudo-terminal and keeps every
chunk of its output with its time (s since the start). `python docs/demo_svg.py draw docs/images/demo.json` writes the
SVG next to it: the screen as it was while the run was half done, and its last lines. Linux and macOS only.
"""

import argparse
import json
import os
import pty
import re
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH = 100  # columns of the recording terminal
MOVES = re.compile(r"\x1b\[(\d*)([A-K])|(\r)|(\n)|(\x1b\[\?\d+[hl])")


def record(command: list[str], path: Path) -> int:
    """Run `command` on a terminal of WIDTH columns. Returns its exit status."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update({"COLUMNS": str(WIDTH), "LINES": "40", "TERM": "xterm-256color"})
        os.execvp(command[0], command)
    started_at, chunks = time.monotonic(), []
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # Linux says so when the other side is closed
            break
        if not data:
            break
        chunks.append((round(time.monotonic() - started_at, 2), data.decode(errors="replace")))
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    path.write_text(json.dumps({"command": " ".join(command), "width": WIDTH, "chunks": chunks}))
    return status


def screen(text: str) -> list[str]:
    """The lines that a terminal shows after `text`, colours kept. Knows only the moves that rich makes."""
    lines, row = [""], 0
    at = 0
    for move in MOVES.finditer(text):
        lines[row] += text[at : move.start()]
        at = move.end()
        count, kind, is_return, is_newline, _ = move.groups()
        if is_newline:
            row += 1
            if row == len(lines):
                lines.append("")
        elif is_return:
            rest = text[at : at + 1]
            if rest not in {"\n", "\r", ""}:
                lines[row] = ""
        elif kind == "A":
            row = max(row - int(count or 1), 0)
        elif kind == "K":
            lines[row] = ""
    lines[row] += text[at:]
    return lines


def draw(path: Path, *, frame_s: float | None, is_shown: re.Pattern[str], num_lines: int) -> Path:
    """Write PATH.svg: the frame at `frame_s` (s, None: the last) without the lines that do not match `is_shown`."""
    recording = json.loads(path.read_text())
    text = "".join(chunk for at_s, chunk in recording["chunks"] if frame_s is None or at_s <= frame_s)
    lines = [line for line in screen(text) if is_shown.search(Text.from_ansi(line).plain)][-num_lines:]
    console = Console(record=True, width=recording["width"], file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    console.print(Text(f"$ {recording['command']}", style="bold"))
    for line in lines:
        console.print(Text.from_ansi(line))
    target = path.with_suffix(".svg")
    svg = console.export_svg(title="batchfile")
    target.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S))  # no font from elsewhere
    return target


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["record", "draw"])
    parser.add_argument("path", type=Path)
    parser.add_argument("--frame-s", type=float)
    parser.add_argument("--lines", type=int, default=30)
    parser.add_argument("--shown", type=re.compile, default=re.compile(""))
    parser.add_argument("command", nargs="*")
    args = parser.parse_args()
    if args.verb == "record":
        return record(args.command, args.path)
    draw(args.path, frame_s=args.frame_s, is_shown=args.shown, num_lines=args.lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
