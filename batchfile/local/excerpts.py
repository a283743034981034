"""Writes a sample of a file, or the file in parts, in its own format: JSONL, also compressed, or Parquet.

Reads the input twice: the first time it counts the records. An output gets its name once it is complete.
"""

import gzip
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePath
from typing import BinaryIO, cast

from batchfile.errors import InvalidFile, OutputTaken, SettingsError
from batchfile.lines import records
from batchfile.lines.file_formats import FileFormat, open_lines, zstd
from batchfile.lines.framing import NO_REQUEST
from batchfile.lines.records import Piece
from batchfile.local.inputs import Source, check_untouched, inspect
from batchfile.local.options import STDIN, STDOUT

PARTS_MAX = 10_000
_PACKED = {".gz": "gzip", ".zst": "zstd"}
_PARQUET = ".parquet"
_NOT_WRITTEN = frozenset({".csv", ".tsv", ".xls", ".xlsx", ".arrow", ".feather", ".zip", ".bz2", ".xz"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """A file on disk. `name`: as its user wrote it; `path`: where its bytes are."""

    name: str
    path: str
    source: Source

    @property
    def format(self) -> FileFormat:
        return self.source.format

    @property
    def ending(self) -> str:
        """Of files in the same format: `.jsonl.gz`."""
        if self.format == "parquet":
            return _PARQUET
        packed = {"gzip": ".gz", "zstd": ".zst"}.get(self.format, "")
        return (PurePath(_unpacked(self.name)).suffix or ".jsonl") + packed

    @property
    def stem(self) -> str:
        return "stdin" if self.name == STDIN else PurePath(_unpacked(self.name)).stem

    def pieces(self) -> Iterator[Piece]:
        """Raises: InvalidFile where the file is damaged or changes meanwhile."""
        with open(self.path, "rb", buffering=0) as file:
            name = "stdin" if self.name == STDIN else self.name
            yield from records.pieces(open_lines(name, self.format, cast(BinaryIO, file)))
        check_untouched(self.source)


@contextmanager
def opened(name: str) -> Iterator[Original]:
    """The file, or stdin written to one. Raises: InvalidFile."""
    source = inspect(name)
    if source.path is not None:
        yield Original(name=name, path=source.path, source=source)
        return
    with tempfile.NamedTemporaryFile(prefix="batchfile-") as file:
        file.write(source.head)
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.flush()
        yield Original(name=name, path=file.name, source=inspect(file.name))


def write_sample(original: Original, num: int, seed: int, output: str) -> tuple[int, int]:
    """Write `num` records to the file `output` (- is stdout), or all if there are fewer. Returns how many were written,
    and how many there are.

    Raises: InvalidFile; OutputTaken; SettingsError where the output cannot be written.
    """
    path = None if output == STDOUT else _free(output)
    is_parquet = path is not None and PurePath(path).suffix.lower() == _PARQUET
    if is_parquet and original.format != "parquet":
        raise SettingsError(f"{output}: only a Parquet file is sampled as Parquet; use a name ending in .jsonl")
    total = _count(original, as_rows=is_parquet)
    indexes = records.drawn(total, num, seed)
    if path is None:
        for data in records.picked(original.pieces(), indexes):
            sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        with _named_at_the_end(path) as temporary:
            if is_parquet:
                from batchfile.lines.parquet_rows import copy_rows

                copy_rows(original.path, [(temporary, indexes)])
            else:
                with _writer(temporary) as file:
                    for data in records.picked(original.pieces(), indexes):
                        file.write(data)
    return min(num, total), total


def write_parts(original: Original, folder: str, *, lines: int | None, parts: int | None) -> tuple[list[str], int]:
    """Write the file in parts of `lines` records, or in `parts` of equal size, to a new or empty `folder`.

    Returns the names of the parts, and the number of records. Raises: as `write_sample`.
    """
    path = _free(folder, is_folder=True)
    is_parquet = original.format == "parquet"
    total = _count(original, as_rows=is_parquet)
    num_parts = -(-total // lines) if lines is not None else min(parts or 1, total)
    if num_parts > PARTS_MAX:
        raise SettingsError(f"{original.name}: would be {num_parts:,} parts; the limit is {PARTS_MAX:,}")
    ends = records.ends_of_parts(total, lines=lines, parts=parts)
    names = [f"{original.stem}-{n:04}-of-{num_parts:04}{original.ending}" for n in range(1, num_parts + 1)]
    with _named_at_the_end(path) as temporary:
        os.mkdir(temporary)
        targets = [os.path.join(temporary, name) for name in names]
        if is_parquet:
            from batchfile.lines.parquet_rows import copy_rows

            starts = [0, *ends]
            copy_rows(original.path, ((target, range(starts[n], ends[n])) for n, target in enumerate(targets)))
        else:
            _share_out(original.pieces(), targets, ends)
    return names, total


def _share_out(pieces: Iterator[Piece], targets: list[str], ends: list[int]) -> None:
    """Write all pieces: the targets together have every byte of the file."""
    held: list[bytes] = []  # the piece that ended the part before
    for target, end in zip(targets, ends, strict=True):
        with _writer(target) as file:
            file.writelines(held)
            held = []
            for piece in pieces:
                if piece.record is not None and piece.record >= end:
                    held = [piece.data]
                    break
                file.write(piece.data)


def _count(original: Original, *, as_rows: bool) -> int:
    if as_rows:
        from batchfile.lines.parquet_rows import num_rows

        total = num_rows(original.path)
    else:
        total = records.count(original.pieces())
    if not total:
        raise InvalidFile(f"{original.name}: {NO_REQUEST}")
    return total


def _free(output: str, *, is_folder: bool = False) -> str:
    """The absolute path of an output that does not exist yet. Raises: OutputTaken, SettingsError."""
    path = os.path.abspath(output)
    if is_folder and os.path.isdir(path) and not os.path.islink(path):
        found = sorted(os.listdir(path))
        if found:
            raise OutputTaken(f"{output} already holds {found[0]}; choose a new or empty folder")
    elif os.path.lexists(path):
        raise OutputTaken(f"{output} exists; choose another {'folder' if is_folder else 'output'}")
    elif not is_folder and PurePath(_unpacked(path)).suffix.lower() in _NOT_WRITTEN:
        raise SettingsError(
            f"{output}: the format is not supported; use a name ending in .jsonl, .jsonl.gz or .parquet"
        )
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        raise SettingsError(f"{output}: the directory {parent} does not exist; create it first")
    return path


@contextmanager
def _named_at_the_end(path: str) -> Iterator[str]:
    """A path on the same disk for a file or folder, which gets the name `path` once it is complete."""
    folder, name = os.path.split(path)
    with tempfile.TemporaryDirectory(prefix=".batchfile-", dir=folder) as unfinished:
        temporary = os.path.join(unfinished, name)
        yield temporary
        os.rename(temporary, path)


@contextmanager
def _writer(path: str) -> Iterator[BinaryIO]:
    """Compresses by the ending of `path`. The same bytes each time."""
    kind = _PACKED.get(PurePath(path).suffix.lower())
    with open(path, "wb") as plain:
        if kind is None:
            yield plain
        elif kind == "gzip":
            with gzip.GzipFile("", "wb", fileobj=plain, mtime=0) as packed:
                yield cast(BinaryIO, packed)
        else:
            with zstd.open(plain, "wb") as packed:
                yield cast(BinaryIO, packed)


def _unpacked(name: str) -> str:
    """The name without an ending of compression."""
    path = PurePath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in _PACKED else name
