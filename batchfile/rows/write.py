"""Writes rows as CSV, JSONL, text or Parquet, compressed where the name says so. Memory: one group of rows."""

import csv
import gzip
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePath
from typing import Any, BinaryIO, Literal, cast

import msgspec

from batchfile.lines.file_formats import zstd
from batchfile.lines.result import escape_separators

TableLayout = Literal["csv", "jsonl", "text", "parquet"]
Rows = Callable[[], Iterator[dict[str, Any]]]  # the same rows with each call: their columns are read first

CHUNK_ROWS = 500
_LAYOUTS: dict[str, TableLayout] = {".csv": "csv", ".tsv": "csv", ".tab": "csv", ".txt": "text", ".parquet": "parquet"}

_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFormat:
    """`delimiter`: of CSV. `column`: the one that text has, one value on each line; `is_raw`: as it is.

    `types`: of columns of the input, for Parquet: an Arrow schema as base64.
    """

    layout: TableLayout
    delimiter: str = ","
    packing: Literal["", ".gz", ".zst"] = ""
    column: str = ""
    is_raw: bool = False
    types: str = ""


def format_of(name: str, *, delimiter: str, column: str, is_raw: bool = False) -> TableFormat:
    """By the ending of a file's name: JSONL unless it is known. `delimiter`: for .csv, unless it is that of .tsv."""
    path = PurePath(name.lower())
    packing = cast(Literal["", ".gz", ".zst"], path.suffix if path.suffix in {".gz", ".zst"} else "")
    ending = PurePath(path.stem).suffix if packing else path.suffix
    delimiter = "\t" if ending != ".csv" else delimiter if delimiter in {";", "|"} else ","
    layout = _LAYOUTS.get(ending, "jsonl")
    return TableFormat(layout=layout, delimiter=delimiter, packing=packing, column=column, is_raw=is_raw)


def write_rows(rows: Rows, file: BinaryIO, form: TableFormat) -> None:
    """Columns are in the order in which they appear first. `file` stays open. Raises: OSError."""
    with packed(file, form.packing) as stream:
        if form.layout == "parquet":
            from batchfile.rows.write_parquet import write_parquet

            write_parquet(rows, stream, form.types)
            return
        chunks = {"csv": _csv_chunks, "jsonl": _json_chunks, "text": _text_chunks}[form.layout](rows, form)
        for chunk in chunks:
            stream.write(chunk)


@contextmanager
def packed(file: BinaryIO, ending: str) -> Iterator[BinaryIO]:
    """Compresses what is written, if the ending says so. The same bytes each time."""
    if ending == ".gz":
        with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as stream:
            yield cast(BinaryIO, stream)
    elif ending == ".zst":
        with zstd.ZstdFile(file, "w") as stream:
            yield cast(BinaryIO, stream)
    else:
        yield file


def grouped(rows: Rows, size: int) -> Iterator[list[dict[str, Any]]]:
    left = rows()
    while some := [*islice(left, size)]:
        yield some


def _json_chunks(rows: Rows, form: TableFormat) -> Iterator[bytes]:
    for some in grouped(rows, CHUNK_ROWS):
        yield escape_separators(b"".join([_encoder.encode(row) + b"\n" for row in some]))


class _Records:
    """Receives each record that a CSV writer has made, and ends it with a newline.

    The writer quotes what contains a character of its line ending, so that has to be CRLF: a lone CR would be lost.
    """

    ENDING = "\r\n"

    def __init__(self) -> None:
        self._records: list[str] = []

    def write(self, record: str) -> None:
        self._records.append(record.removesuffix(self.ENDING))

    def take(self) -> bytes:
        text = "".join([record + "\n" for record in self._records])
        self._records.clear()
        return text.encode("utf-8", "replace")


def _csv_chunks(rows: Rows, form: TableFormat) -> Iterator[bytes]:
    records, columns = _Records(), columns_of(rows())
    writer = csv.writer(records, delimiter=form.delimiter, lineterminator=_Records.ENDING)
    writer.writerow(columns)
    yield records.take()
    for some in grouped(rows, CHUNK_ROWS):
        writer.writerows([[as_text(row.get(name)) for name in columns] for row in some])
        yield records.take()


def _text_chunks(rows: Rows, form: TableFormat) -> Iterator[bytes]:
    for row in rows():
        text = as_text(row.get(form.column))
        if not form.is_raw:
            text = text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
        yield text.encode("utf-8", "replace") + (b"" if form.is_raw and text.endswith("\n") else b"\n")


def columns_of(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The columns of all rows, in the order in which they appear first."""
    columns: dict[str, None] = {}
    for row in rows:
        if row.keys() != columns.keys():
            columns |= dict.fromkeys(row)
    return list(columns)


def as_text(value: Any) -> str:
    """A value in a cell of text: text as it is, nothing for None, and anything else as JSON."""
    if isinstance(value, str):
        return value
    return "" if value is None else _encoder.encode(value).decode()
