"""Splits a stream of bytes into lines and their positions. Does not parse JSON.

A byte order mark at the start of any line is skipped (files may have been concatenated), and so are NUL bytes after the
last line. CRLF is accepted, blank lines are skipped but counted, and the last newline is optional. A line over the
limit is reported without its data, so memory holds at most one chunk and one line.
"""

from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct

from batchfile.types import LINE_BYTES_MAX

BOM = b"\xef\xbb\xbf"
NO_REQUEST = "contains no requests: it is empty, or every line is blank"
NO_ROW = "has a header and no rows"
NUL_TAIL = "ends in NUL bytes, which are not a request; it was probably cut off while it was written"
LONG_HEAD_BYTES = 4096  # kept of a line over the limit
_CR = 13
_BRACE = b"{"[0]


class Line(Struct, frozen=True, gc=False):
    """One line that is not blank: bytes [start, end) with its newline, row from 1, data without the newline.

    `data`: None for a line over the limit; `head` is then its beginning, which may contain the custom_id.
    """

    start: int
    end: int
    row: int
    data: bytes | None
    head: bytes = b""


def iter_lines(
    chunks: Iterable[bytes], start: int = 0, row: int = 1, *, line_bytes_max: int = LINE_BYTES_MAX
) -> Iterator[Line]:
    """The lines of `chunks`, whose first byte is at the offset `start` of the file, in the line `row`."""
    tail = _Tail(line_bytes_max)
    at, head = start, b""
    for chunk in chunks:
        raws = chunk.split(b"\n")
        rest = raws.pop()
        for raw in raws:
            data: bytes | None = raw
            size = len(raw)
            if tail.size or size > line_bytes_max:
                tail.add(raw)
                size, head, data = tail.size, tail.head, tail.take()
            end = at + size + 1
            if data and data[0] == _BRACE and data[-1] != _CR:
                yield Line(at, end, row, data)  # the common case
            else:
                line = _line(at, end, row, data, head)
                if line is not None:
                    yield line
            at = end
            row += 1
        if rest:
            tail.add(rest)
    if tail.size and not tail.is_nul:
        size, head, data = tail.size, tail.head, tail.take()
        line = _line(at, at + size, row, data and data.rstrip(b"\0"), head)
        if line is not None:
            yield line


def data_of(chunks: Iterable[bytes], size: int, num_lines: int) -> Sequence[bytes | None]:
    """The data of each of these lines, as from `iter_lines`; faster if all of them are plain. `size`: of all chunks."""
    if size > LINE_BYTES_MAX:
        return [line.data for line in iter_lines(chunks)]
    data = b"".join(chunks)
    rows = data.removesuffix(b"\n").split(b"\n")
    is_plain = b"\r" not in data and not data.endswith(b"\0") and (data.isascii() or BOM not in data)
    if is_plain and len(rows) == num_lines:  # so none is blank
        return rows
    return [line.data for line in iter_lines([data])]


def _line(start: int, end: int, row: int, data: bytes | None, head: bytes) -> Line | None:
    """None for a blank line."""
    if data is None:
        return Line(start, end, row, None, head.removeprefix(BOM))
    if data.startswith(BOM):
        data = data[len(BOM) :]
    if not data or data.isspace():
        return None
    return Line(start, end, row, data[:-1] if data[-1] == _CR else data)


class _Tail:
    """The line that has not ended yet. Past the limit its bytes are counted, and only its head is kept."""

    def __init__(self, line_bytes_max: int) -> None:
        self.size = 0
        self.head = b""
        self.is_nul = True  # only NUL bytes, which disks leave after the last write when power fails
        self._pieces: list[bytes] = []
        self._max = line_bytes_max

    def add(self, piece: bytes) -> None:
        self.size += len(piece)
        self.head += piece[: LONG_HEAD_BYTES - len(self.head)]
        self.is_nul = self.is_nul and piece[:1] == b"\0" and not piece.strip(b"\0")
        if self.size <= self._max:
            self._pieces.append(piece)
        else:
            self._pieces.clear()

    def take(self) -> bytes | None:
        """The whole line, or None if it is over the limit. Resets this for the next line."""
        data = b"".join(self._pieces) if self.size <= self._max else None
        self.size = 0
        self.head = b""
        self.is_nul = True
        self._pieces.clear()
        return data
