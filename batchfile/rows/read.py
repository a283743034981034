"""Reads the rows of CSV, JSONL and text from chunks of plain bytes. Memory: one chunk and one row.

JSON arrays and Parquet arrive as JSONL (see `requests_in` and `converter`).
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from batchfile.errors import UNREADABLE, InvalidFile
from batchfile.lines.diagnostics import shown
from batchfile.lines.envelope import diagnostics_of
from batchfile.lines.framing import BOM, NO_ROW, iter_lines
from batchfile.lines.json_scan import has_repeats
from batchfile.lines.kinds import PROMPT, FileKind
from batchfile.lines.records import CsvRecord, csv_records, not_utf8
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


def read_rows(chunks: Iterable[bytes], kind: FileKind, name: str, *, is_one: bool = False) -> Iterator[Row]:
    """The rows of the file `name`, in order. A row that cannot be read has a problem, and the others are read.

    `is_one`: a text is one row, instead of one for each line.
    Raises: InvalidFile where the file as a whole cannot be read: it is not UTF-8, its header is wrong or has no row
    below it, or a quote is never closed.
    """
    if kind.layout == "csv":
        return _csv_rows(csv_records(chunks, kind.delimiter, name), kind.delimiter, name)
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
        except UNREADABLE as error:
            yield Row(line.row, {}, _json_problem(line.data, error))
            continue
        yield Row(line.row, values, "has a column twice; keep one of them" if has_repeats(line.data) else None)


def _json_problem(line: bytes, error: Exception) -> str:
    try:
        return f"must be an object with the columns of the row, got {shown(msgspec.json.decode(line))}"
    except UNREADABLE:
        faults = [found for found in diagnostics_of(line, "native") if not found.path]
        return str(faults[0]) if faults else f"cannot be read: {error}"  # such as a number that is too large


def _text_rows(chunks: Iterable[bytes], name: str) -> Iterator[Row]:
    for line in iter_lines(chunks):
        if line.data is None:
            yield Row(line.row, {PROMPT: ""}, _LONG)
            continue
        try:
            yield Row(line.row, {PROMPT: line.data.decode()})
        except UnicodeDecodeError as error:
            raise not_utf8(name, line.row, error) from None


def _whole_text(chunks: Iterable[bytes], name: str) -> Iterator[Row]:
    data = b""
    for chunk in chunks:
        data += chunk
        if len(data) > LINE_BYTES_MAX:
            raise InvalidFile(f"{name}: is longer than {_LIMIT}, which is too long for one prompt; shorten it")
    try:
        text = data.removeprefix(BOM).decode()
    except UnicodeDecodeError as error:
        raise not_utf8(name, data[: error.start].count(b"\n") + 1, error) from None
    if text.strip():
        yield Row(1, {PROMPT: text.rstrip("\r\n")})


def _csv_rows(records: Iterable[CsvRecord], delimiter: str, name: str) -> Iterator[Row]:
    header: list[str] | None = None
    has_rows = False
    for record in records:
        fields = record.fields
        if record.problem is not None:
            if header is None:
                raise InvalidFile(f"{name}: its header {record.problem}")
            has_rows = True
            yield Row(record.line, {}, record.problem)
        elif fields and header is None:
            header = _checked_header([column.strip() for column in fields], name)
        elif fields and header is not None:
            problem = None
            if len(fields) != len(header):
                problem = f"has {len(fields)} fields, but the header has {len(header)}; put quotes around fields that "
                problem += f"contain {delimiter!r} or a quote"
            has_rows = True
            yield Row(record.line, dict(zip(header, fields, strict=False)), problem)
    if header is not None and not has_rows:
        raise InvalidFile(f"{name}: {NO_ROW}")


def _checked_header(header: list[str], name: str) -> list[str]:
    for column, num in Counter(header).items():
        if num > 1:
            raise InvalidFile(f"{name}: has {num} columns named {column!r}; give each its own name")
    return header
