"""A file of requests, rows or text in its own format, cut into records, and the endings of its format."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import PurePath

from batchfile.errors import InvalidFile
from batchfile.lines import records
from batchfile.lines.kinds import JSON_ENDINGS, TEXT_ENDINGS, refusal, unpacked
from batchfile.lines.records import Piece
from batchfile.local.inputs import Source, inspect, lines_of, repeatable
from batchfile.local.tables import kind_of

# Of files with one layout; the first is for parts of a file that has another one, or none.
_ENDINGS = {"csv": (".csv",), "text": TEXT_ENDINGS}
_TSV_ENDINGS = (".tsv", ".tab")


@contextmanager
def opened(name: str) -> Iterator[Source]:
    """The file, or a copy of what is at an address or on stdin, with its complete kind. Raises: InvalidFile."""
    source = inspect(name)
    if source.kind.layout == "object":
        raise InvalidFile(refusal(source.kind, name))
    with repeatable(source) as found:
        yield replace(found, kind=kind_of(found, is_table=False))


def pieces_of(source: Source) -> Iterator[Piece]:
    """The records, and the blank lines between them."""
    if source.kind.layout == "csv":
        return records.csv_pieces(lines_of(source), source.kind.delimiter, source.shown)
    return records.pieces(lines_of(source))


def endings_of(source: Source) -> tuple[str, ...]:
    """Of files as they are written, without that of the compression."""
    if source.kind.delimiter == "\t":
        return _TSV_ENDINGS
    return _ENDINGS.get(source.kind.layout, JSON_ENDINGS)


def stem_and_ending(source: Source) -> tuple[str, str]:
    """Of the names of its parts."""
    path = PurePath(unpacked(source.name))
    known, own = endings_of(source), path.suffix.lower()
    ending = own if own in known and not source.kind.is_array else known[0]
    return path.stem, ending + {"gzip": ".gz", "zstd": ".zst"}.get(source.format, "")
