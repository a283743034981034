"""Writes rows as CSV, JSONL, text or Parquet, compressed where the name says so. Memory: one group of rows."""

import csv
import gzip
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import PurePath
from typing import Any, BinaryIO, cast

import msgspec

from batchfile.lines.file_formats import zstd
from batchfile.lines.framing import BOM
from batchfile.lines.kinds import CSV_ENDINGS, ending_of
from batchfile.lines.result import escape_separators

Rows = Callable[[], Iterator[dict[str, Any]]]  # the same rows with each call: their columns are read first

CHUNK_ROWS = 500

_encoder = msgspec.json.Encoder()


def write_rows(
    rows: Rows,
    file: BinaryIO,
    name: str,
    *,
    column: str,
    last: Collection[str] = (),
    delimiter: str = "",
    has_bom: bool = False,
    types: str = "",
    is_raw: bool = False,
) -> None:
    """In the format that the ending of `name` says; JSONL unless it is known. Columns are in the order in which they
    appear first, and then the `last` ones. `file` stays open.

    `delimiter`, `has_bom`: of CSV. `types`: of the input's columns, for Parquet.
    `column`: the one that text has, one value on each line; `is_raw`: as it is.
    Raises: OSError.
    """
    ending = ending_of(name)
    with packed(file, PurePath(name.lower()).suffix) as stream:
        if ending == ".parquet":
            from batchfile.rows.write_parquet import write_parquet

            write_parquet(rows, stream, last, types)
        elif ending in CSV_ENDINGS:
            stream.write(BOM if has_bom else b"")
            mark = "\t" if ending != ".csv" else delimiter if delimiter in {";", "|"} else ","
            stream.writelines(_csv_chunks(rows, mark, last))
        elif ending == ".txt":
            stream.writelines(_text_chunks(rows, column, is_raw=is_raw))
        else:
            stream.writelines(_json_chunks(rows))


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


def _json_chunks(rows: Rows) -> Iterator[bytes]:
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


def _csv_chunks(rows: Rows, delimiter: str, last: Collection[str]) -> Iterator[bytes]:
    records, columns = _Records(), in_order(columns_of(rows()), last)
    writer = csv.writer(records, delimiter=delimiter, lineterminator=_Records.ENDING)
    writer.writerow(columns)
    yield records.take()
    for some in grouped(rows, CHUNK_ROWS):
        writer.writerows([[as_text(row.get(name)) for name in columns] for row in some])
        yield records.take()


def _text_chunks(rows: Rows, column: str, *, is_raw: bool) -> Iterator[bytes]:
    for row in rows():
        text = as_text(row.get(column))
        if not is_raw:
            text = text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
        yield text.encode("utf-8", "replace") + (b"" if is_raw and text.endswith("\n") else b"\n")


def columns_of(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The columns of all rows, in the order in which they appear first."""
    columns: dict[str, None] = {}
    for row in rows:
        if row.keys() != columns.keys():
            columns |= dict.fromkeys(row)
    return list(columns)


def in_order(names: Collection[str], last: Collection[str]) -> list[str]:
    return [name for name in names if name not in last] + [name for name in last if name in names]


def as_text(value: Any) -> str:
    """A value in a cell of text: text as it is, nothing for None, and anything else as JSON."""
    if isinstance(value, str):
        return value
    return "" if value is None else _encoder.encode(value).decode()
