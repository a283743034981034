"""Reads the rows of CSV, JSONL and text from chunks of plain bytes. Memory: one chunk and one row.

JSON arrays and Parquet arrive as JSONL (see `requests_in` and `converter`).
"""

import codecs
import csv
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from batchfile.errors import UNREADABLE, InvalidFile
from batchfile.lines.diagnostics import shown
from batchfile.lines.envelope import diagnostics_of
from batchfile.lines.framing import BOM, iter_lines
from batchfile.lines.json_scan import has_repeats
from batchfile.lines.kinds import PROMPT, Kind
from batchfile.types import LINE_BYTES_MAX

_LIMIT = f"{LINE_BYTES_MAX // 2**20} MiB"
_LONG = f"is longer than {_LIMIT}; shorten the row"


class Row(NamedTuple):
    """`line`: where it begins in its file, from 1. `values`: by column, as JSON has them. `problem`: why it cannot run.

    Rows of JSON and Parquet that are not in lines of their own are counted from 1.
    """

    line: int
    values: dict[str, Any]
    problem: str | None = None


def read_rows(chunks: Iterable[bytes], kind: Kind, name: str, *, is_one: bool = False) -> Iterator[Row]:
    """The rows of the file `name`, in order. A row that cannot be read has a problem, and the others are read.

    `is_one`: a text is one row, instead of one for each line.
    Raises: InvalidFile where the file as a whole cannot be read: it is not UTF-8, its header is wrong, or a quote is
    never closed.
    """
    if kind.layout == "csv":
        return _csv_rows(_Text(chunks, name), kind.delimiter, name)
    if kind.layout == "text":
        return _whole_text(chunks, name) if is_one else _text_rows(chunks, name)
    return _json_rows(chunks)


def _json_rows(chunks: Iterable[bytes]) -> Iterator[Row]:
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    for line in iter_lines(chunks):
        if line.data is None:
            yield Row(line.row, {}, _LONG)
            continue
        try:
            values = decode(line.data)
        except UNREADABLE:
            yield Row(line.row, {}, _json_problem(line.data))
            continue
        yield Row(line.row, values, "has a column twice; keep one of them" if has_repeats(line.data) else None)


def _json_problem(line: bytes) -> str:
    try:
        return f"must be an object with the columns of the row, got {shown(msgspec.json.decode(line))}"
    except UNREADABLE:
        return str(diagnostics_of(line, "native")[0])


def _text_rows(chunks: Iterable[bytes], name: str) -> Iterator[Row]:
    for line in iter_lines(chunks):
        if line.data is None:
            yield Row(line.row, {PROMPT: ""}, _LONG)
            continue
        try:
            yield Row(line.row, {PROMPT: line.data.decode()})
        except UnicodeDecodeError as error:
            raise _not_utf8(name, line.row, line.data[error.start]) from None


def _whole_text(chunks: Iterable[bytes], name: str) -> Iterator[Row]:
    text = ""
    for line in _Text(chunks, name):
        text += line
        if len(text) > LINE_BYTES_MAX:
            raise InvalidFile(f"{name}: is longer than {_LIMIT}, which is too long for one prompt; shorten it")
    if text.strip():
        yield Row(1, {PROMPT: text.rstrip("\r\n")})


def _csv_rows(text: "_Text", delimiter: str, name: str) -> Iterator[Row]:
    csv.field_size_limit(2 * LINE_BYTES_MAX)  # of the process; _Text limits each record before that
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        line = text.begin_record()
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if text.is_at_end:
                raise InvalidFile(f"{name}: a quote in the record that begins on line {line} is never closed") from None
            if header is None:
                raise InvalidFile(f"{name}: its header is not valid CSV: {error}") from None
            yield Row(line, {}, f"is not valid CSV: {error}")
            continue
        if not record:
            continue  # a blank line
        if header is None:
            header = _checked_header([column.strip() for column in record], name)
            continue
        problem = None
        if len(record) != len(header):
            problem = f"has {len(record)} fields, but the header has {len(header)}; put quotes around fields that "
            problem += f"contain {delimiter!r} or a quote"
        yield Row(line, dict(zip(header, record, strict=False)), problem)


def _checked_header(header: list[str], name: str) -> list[str]:
    for column, num in Counter(header).items():
        if num > 1:
            raise InvalidFile(f"{name}: has {num} columns named {column!r}; give each its own name")
    return header


class _Text:
    """The lines of UTF-8 text, with their ends. Raises: InvalidFile where it is not UTF-8, or a record is too long."""

    def __init__(self, chunks: Iterable[bytes], name: str) -> None:
        self.is_at_end = False
        self._name = name
        self._line = 0  # the last one that was given out
        self._start = 1  # where the record begins
        self._num_chars = 0  # of the record so far
        self._lines = self._read(chunks)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._line += 1
        self._count(len(line))
        return line

    def begin_record(self) -> int:
        """The line where the next record begins, from 1."""
        self._start, self._num_chars = self._line + 1, 0
        return self._start

    def _count(self, num_chars: int) -> None:
        self._num_chars += num_chars
        if self._num_chars > LINE_BYTES_MAX:
            where = f"the record that begins on line {self._start} is longer than {_LIMIT}"
            raise InvalidFile(f"{self._name}: {where}; close its quote, or shorten it")

    def _read(self, chunks: Iterable[bytes]) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")()
        left, mark = "", BOM.decode()
        for chunk in chunks:
            left += self._decoded(decoder, chunk)
            if len(left) > 0:
                left, mark = left.removeprefix(mark), ""
            if b"\n" in chunk:
                *lines, left = left.split("\n")
                for line in lines:
                    yield line + "\n"
            if len(left) > LINE_BYTES_MAX:
                self._count(len(left))  # raises: there is no need to read the rest of the line
        left += self._decoded(decoder, b"", is_last=True)
        if left:
            yield left
        self.is_at_end = True  # not before the last line was read: an error in that line is its own

    def _decoded(self, decoder: codecs.IncrementalDecoder, chunk: bytes, *, is_last: bool = False) -> str:
        try:
            return decoder.decode(chunk, is_last)
        except UnicodeDecodeError as error:
            num = self._line + 1 + error.object[: error.start].count(b"\n")
            raise _not_utf8(self._name, num, error.object[error.start]) from None


def _not_utf8(name: str, line: int, byte: int) -> InvalidFile:
    return InvalidFile(
        f"{name}: line {line}: byte 0x{byte:02x} is not UTF-8; save the file as UTF-8, for example with "
        "`iconv -f WINDOWS-1252 -t UTF-8`"
    )
