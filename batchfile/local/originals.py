"""A file of requests, rows or text in its own format, to be read more than once, and the endings of its format."""

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import BinaryIO, cast

from batchfile.errors import InvalidFile
from batchfile.lines import records
from batchfile.lines.file_formats import FileFormat, open_lines, parquet_columns
from batchfile.lines.kinds import Kind, refusal
from batchfile.lines.parquet import is_request_table
from batchfile.lines.records import HEADER, Piece
from batchfile.lines.split_document import elements
from batchfile.local.inputs import Counted, Source, check_untouched, inspect
from batchfile.local.options import STDIN

PACKED = {".gz": "gzip", ".zst": "zstd"}
PARQUET = ".parquet"
# Endings of one format in a row; the first is for parts of a file that has another one, or none.
FORMATS: dict[str, tuple[str, ...]] = {
    "json": (".jsonl", ".ndjson", ".jsonlines", ".json"),
    ",": (".csv",),
    "\t": (".tsv", ".tab"),
    "text": (".txt", ".text", ".md"),
    "parquet": (PARQUET,),
    "none that is written": (".xls", ".xlsx", ".arrow", ".feather", ".zip", ".bz2", ".xz"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """A file on disk. `name`: as its user wrote it; `path`: where its bytes are. `kind`: complete, also of Parquet."""

    name: str
    path: str
    source: Source
    kind: Kind

    @property
    def shown(self) -> str:
        """Its name for messages."""
        return "stdin" if self.name == STDIN else self.name

    @property
    def format(self) -> FileFormat:
        return self.source.format

    @property
    def endings(self) -> tuple[str, ...]:
        """Of files in the same format, without that of the compression."""
        layout = self.kind.layout
        known = FORMATS.get(self.kind.delimiter if layout == "csv" else layout, FORMATS["json"])
        own = PurePath(unpacked(self.name)).suffix.lower()
        if layout == "csv" and self.kind.delimiter not in FORMATS:
            known = FORMATS[","]
        return (own, *known) if own in known and not self.kind.is_array else known

    @property
    def ending(self) -> str:
        packed = {"gzip": ".gz", "zstd": ".zst"}.get(self.format, "")
        return self.endings[0] + packed

    @property
    def stem(self) -> str:
        return PurePath(unpacked(self.shown)).stem

    def chunks(self, on_bytes: Callable[[int], None] | None = None) -> Iterator[bytes]:
        """Plain bytes; JSON arrays and Parquet as JSONL. Raises: InvalidFile if it is damaged or changes meanwhile."""
        with open(self.path, "rb", buffering=0) as file:
            stream = file if self.format == "parquet" else Counted(cast(BinaryIO, file), on_bytes)
            is_rows = self.kind.content == "rows"
            lines = open_lines(self.shown, self.format, cast(BinaryIO, stream), as_rows=is_rows)
            yield from elements(lines, self.shown) if self.kind.is_array else lines
        check_untouched(self.source)

    def pieces(self) -> Iterator[Piece]:
        """The records, and the blank lines between them; without the header of CSV."""
        if self.kind.layout != "csv":
            return records.pieces(self.chunks())
        found = records.csv_pieces(self.chunks(), self.kind.delimiter, self.shown)
        return (piece for piece in found if piece.record != HEADER)

    def header(self) -> bytes:
        """What each file of the same format begins with."""
        if self.kind.layout != "csv":
            return b""
        found = records.csv_pieces(self.chunks(), self.kind.delimiter, self.shown)
        return next((piece.data for piece in found if piece.record == HEADER), b"")


@contextmanager
def opened(name: str) -> Iterator[Original]:
    """The file, or stdin written to one. Raises: InvalidFile."""
    source = inspect(name)
    if source.path is not None:
        yield _original(name, source.path, source)
        return
    with tempfile.NamedTemporaryFile(prefix="batchfile-") as file:
        file.write(source.head)
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.flush()
        yield _original(name, file.name, replace(inspect(file.name), kind=source.kind))


def _original(name: str, path: str, source: Source) -> Original:
    kind = source.kind
    if kind.layout == "object":
        raise InvalidFile(refusal(kind, name))
    if source.format == "parquet":
        columns = parquet_columns(path)
        kind = replace(kind, columns=columns, content="requests" if is_request_table(columns) else "rows")
    return Original(name=name, path=path, source=source, kind=kind)


def unpacked(name: str) -> str:
    """The name without an ending of compression."""
    path = PurePath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in PACKED else name
