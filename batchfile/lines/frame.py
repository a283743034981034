"""A stream of bytes into lines with their places. Knows no JSON.

A byte order mark at the start is skipped, CRLF is accepted, blank lines are skipped but counted, and a missing last newline is
fine. A line over the limit is reported without its data: memory holds one chunk and one legal line.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from batchfile.words import LINE_BYTES_MAX

_BOM = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """One line that is not blank: bytes [start, end) with its newline, row from 1, data without the newline.

    `data` is None where the line is longer than LINE_BYTES_MAX.
    """

    start: int
    end: int
    row: int
    data: bytes | None


def iter_lines(chunks: Iterable[bytes], start: int = 0, row: int = 1) -> Iterator[Line]:
    """The lines of `chunks`, of which the first byte is at `start`, on the line `row`."""
    tail = b""
    skipped = 0  # bytes of an over-long line that are gone already
    at = start
    for chunk in chunks:
        rows = chunk.split(b"\n")
        if len(rows) == 1:
            tail, skipped = _grow(tail, chunk, skipped)
            continue
        rows[0] = tail + rows[0]
        tail = rows.pop()
        for raw in rows:
            end = at + len(raw) + 1 + skipped
            line = _line(at, end, row, raw, skipped)
            if line is not None:
                yield line
            at, skipped = end, 0
            row += 1
    if tail or skipped:
        line = _line(at, at + len(tail) + skipped, row, tail, skipped)
        if line is not None:
            yield line


def _grow(tail: bytes, chunk: bytes, skipped: int) -> tuple[bytes, int]:
    """More of a line that has not ended. Past the limit its bytes are only counted."""
    tail += chunk
    if skipped or len(tail) > LINE_BYTES_MAX:
        return b"", skipped + len(tail)
    return tail, 0


def _line(at: int, end: int, row: int, raw: bytes, skipped: int) -> Line | None:
    if skipped or len(raw) > LINE_BYTES_MAX:
        return Line(at, end, row, None)
    if at == 0 and raw.startswith(_BOM):
        raw = raw[len(_BOM) :]
    if not raw or raw.isspace():
        return None
    return Line(at, end, row, raw)
