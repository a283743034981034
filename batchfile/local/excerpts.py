"""Writes a sample of a file, or the file in parts: JSONL, CSV or text, also compressed. JSON arrays and Parquet
become JSONL.

Reads the input twice: the first time it counts the records. An output gets its name once it is complete.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import BinaryIO

from batchfile.errors import InvalidFile, OutputTaken, SettingsError
from batchfile.lines import records
from batchfile.lines.framing import NO_REQUEST, NO_ROW
from batchfile.lines.kinds import ending_of
from batchfile.local.inputs import Source
from batchfile.local.options import STDOUT
from batchfile.local.originals import endings_of, pieces_of, stem_and_ending
from batchfile.rows.write import packed

PARTS_MAX = 10_000


def write_sample(original: Source, num: int, seed: int, output: str) -> tuple[int, int]:
    """Write `num` records to the file `output` (- is stdout), or all if there are fewer. Returns how many were written,
    and how many there are.

    Raises: InvalidFile; OutputTaken; SettingsError where the output cannot be written.
    """
    path = None if output == STDOUT else _free(output)
    if path is not None:
        _check_ending(original, output)
    total = _count(original)
    chosen = records.picked(pieces_of(original), records.drawn(total, num, seed))
    if path is None:
        sys.stdout.buffer.writelines(chosen)
        sys.stdout.buffer.flush()
    else:
        with _named_at_the_end(path) as temporary, _writer(temporary) as file:
            file.writelines(chosen)
    return min(num, total), total


def write_parts(original: Source, folder: str, *, lines: int | None, parts: int | None) -> tuple[list[str], int]:
    """Write the file in parts of `lines` records, or in `parts` of equal size, to a new or empty `folder`.

    Returns the names of the parts, and the number of records. Raises: as `write_sample`.
    """
    path = _free(folder, is_folder=True)
    total = _count(original)
    num_parts = -(-total // lines) if lines is not None else min(parts or 1, total)
    if num_parts > PARTS_MAX:
        raise SettingsError(f"{original.shown}: would be {num_parts:,} parts; the limit is {PARTS_MAX:,}")
    ends = records.ends_of_parts(total, lines=lines, parts=parts)
    stem, ending = stem_and_ending(original)
    names = [f"{stem}-{n:04}-of-{num_parts:04}{ending}" for n in range(1, num_parts + 1)]
    with _named_at_the_end(path) as temporary:
        os.mkdir(temporary)
        _share_out(original, [os.path.join(temporary, name) for name in names], ends)
    return names, total


def _share_out(original: Source, targets: list[str], ends: list[int]) -> None:
    """Write all pieces: the targets together have every byte of the file, and each has the header of CSV."""
    header, pieces = b"", pieces_of(original)
    held: list[bytes] = []  # the piece that ended the part before
    for target, end in zip(targets, ends, strict=True):
        with _writer(target) as file:
            file.writelines([header, *held])
            held = []
            for piece in pieces:
                if piece.record is not None and piece.record >= end:
                    held = [piece.data]
                    break
                if piece.record == records.HEADER:
                    header = piece.data
                file.write(piece.data)


def _count(original: Source) -> int:
    total = records.count(pieces_of(original))
    if not total:
        raise InvalidFile(f"{original.shown}: {NO_ROW if original.kind.layout == 'csv' else NO_REQUEST}")
    return total


def _check_ending(original: Source, output: str) -> None:
    """Raises: SettingsError where the output is named like another format than that of its lines."""
    allowed = endings_of(original)
    if ending_of(output) not in {"", *allowed}:
        raise SettingsError(f"{output}: a sample has the format of its file; use a name ending in {allowed[0]}")


def _free(output: str, *, is_folder: bool = False) -> str:
    """The absolute path of an output that does not exist yet. Raises: OutputTaken, SettingsError."""
    path = os.path.abspath(output)
    if is_folder and os.path.isdir(path) and not os.path.islink(path):
        found = sorted(os.listdir(path))
        if found:
            raise OutputTaken(f"{output} already holds {found[0]}; choose a new or empty folder")
    elif os.path.lexists(path):
        raise OutputTaken(f"{output} exists; choose another {'folder' if is_folder else 'output'}")
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
    with open(path, "wb") as plain, packed(plain, PurePath(path).suffix.lower()) as file:
        yield file
