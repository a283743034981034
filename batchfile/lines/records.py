"""Cuts a file into records byte for byte, draws a uniform sample of them, and shares them out to parts.

A record is a line that is not blank, or a record of CSV. Memory holds at most one chunk and one record. Pure.
"""

import csv
import random
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from batchfile.errors import InvalidFile
from batchfile.lines.framing import BOM
from batchfile.types import LINE_BYTES_MAX

HEADER = -1  # the record of CSV before the first row


class Piece(NamedTuple):
    """Bytes of a file. `record`: its index, from 0; None for a blank line. Only a line over the limit of a request has
    several pieces.
    """

    record: int | None
    data: bytes


def pieces(chunks: Iterable[bytes]) -> Iterator[Piece]:
    """All bytes of the file, in order. Counts the same lines as `framing.iter_lines`."""
    index, held, is_begun = -1, b"", False
    for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        for raw in ended:
            data = held + raw + b"\n"
            held = b""
            if not is_begun and _is_blank(data):
                yield Piece(None, data)
                continue
            index += not is_begun
            is_begun = False
            yield Piece(index, data)
        held += rest
        if len(held) > LINE_BYTES_MAX or (is_begun and held):
            index += not is_begun
            is_begun = True
            yield Piece(index, held)
            held = b""
    if held:  # NUL bytes at the end are left by a disk when power fails
        is_record = is_begun or not _is_blank(held.rstrip(b"\0"))
        yield Piece(index + (not is_begun) if is_record else None, held)


def csv_pieces(chunks: Iterable[bytes], delimiter: str, name: str) -> Iterator[Piece]:
    """The same for CSV, whose first record is HEADER. A run finds the same records.

    Raises: InvalidFile where a record is too long, or a quote is never closed.
    """
    held: list[bytes] = []
    is_at_end = False

    def lines() -> Iterator[str]:
        nonlocal is_at_end
        mark = BOM
        for piece in pieces(chunks):
            held.append(piece.data)
            if sum(map(len, held)) > LINE_BYTES_MAX:
                limit = f"{LINE_BYTES_MAX // 2**20} MiB"
                raise InvalidFile(f"{name}: row {record + 2} is longer than {limit}; close its quote, or shorten it")
            yield piece.data.removeprefix(mark).decode("latin-1")  # a character for each byte
            mark = b""
        is_at_end = True

    record = HEADER - 1
    csv.field_size_limit(2 * LINE_BYTES_MAX)  # of the process
    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error:
            if is_at_end:
                raise InvalidFile(f"{name}: a quote in row {record + 2} is never closed") from None
            fields = [""]  # one record that cannot run
        record += bool(fields)
        yield Piece(record if fields else None, b"".join(held))
        held.clear()


def _is_blank(data: bytes) -> bool:
    rest = data.removeprefix(BOM)
    return not rest or rest.isspace()


def count(found: Iterable[Piece]) -> int:
    """The number of records."""
    num = 0
    for piece in found:
        num = num if piece.record is None else piece.record + 1
    return num


def drawn(total: int, num: int, seed: int) -> Iterator[int]:
    """`num` indexes below `total`, ascending; each set of them is equally likely. The same for the same seed.

    Selection sampling: Knuth, The Art of Computer Programming, volume 2, algorithm 3.4.2 S. Needs no memory.
    """
    draw = random.Random(seed)
    for index in range(total):
        if not num:
            return
        if draw.random() * (total - index) < num:
            num -= 1
            yield index


def picked(found: Iterable[Piece], indexes: Iterable[int]) -> Iterator[bytes]:
    """The bytes of the records with these ascending indexes."""
    wanted = iter(indexes)
    following = next(wanted, None)
    for piece in found:
        if piece.record is None:
            continue
        while following is not None and following < piece.record:
            following = next(wanted, None)
        if following is None:
            return
        if piece.record == following:
            yield piece.data


def ends_of_parts(total: int, *, lines: int | None = None, parts: int | None = None) -> list[int]:
    """Where each part ends: parts of `lines` records and a rest, or `parts` whose sizes differ by at most one."""
    if lines is not None:
        return [*range(lines, total, lines), total]
    num = min(parts or 1, total)
    return [total * n // num for n in range(1, num + 1)]
