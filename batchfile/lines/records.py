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


class CsvRecord(NamedTuple):
    """A record of CSV, or a blank line, which has neither fields nor a problem. `line`: where it begins, from 1.

    `data`: its bytes. `problem`: why its fields cannot be read.
    """

    line: int
    fields: list[str]
    data: bytes
    problem: str | None = None


def csv_records(chunks: Iterable[bytes], delimiter: str, name: str) -> Iterator[CsvRecord]:
    """All bytes of the file `name`, in order.

    Raises: InvalidFile where it is not UTF-8, a record is too long, or a quote is never closed.
    """
    held: list[bytes] = []
    line, size, is_at_end = 1, 0, False

    def texts() -> Iterator[str]:
        nonlocal size, is_at_end
        mark = BOM
        for data in _lines(chunks):
            held.append(data)
            size += len(data)
            if size > LINE_BYTES_MAX:
                where = f"the record that begins on line {line} is longer than {LINE_BYTES_MAX // 2**20} MiB"
                raise InvalidFile(f"{name}: {where}; close its quote, or shorten it")
            try:
                yield data.removeprefix(mark).decode()
            except UnicodeDecodeError as error:
                raise not_utf8(name, line + len(held) - 1, error) from None
            mark = b""
        is_at_end = True  # not before the last line was read: an error in that line is its own

    csv.field_size_limit(2 * LINE_BYTES_MAX)  # of the process; each record is limited before that
    reader = csv.reader(texts(), delimiter=delimiter, strict=True)
    while True:
        fields, problem = [], None
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if is_at_end:
                reason = f"a quote in the record that begins on line {line} is never closed"
                raise InvalidFile(f"{name}: {reason}; close it, or write a quote inside a field twice") from None
            problem = f"is not valid CSV: {error}"
        yield CsvRecord(line, fields, b"".join(held), problem)
        line, size = line + len(held), 0
        held.clear()


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """With their ends. One over the limit comes in pieces."""
    left = b""
    for chunk in chunks:
        *ended, left = (left + chunk).split(b"\n")
        for line in ended:
            yield line + b"\n"
        if len(left) > LINE_BYTES_MAX:
            yield left
            left = b""
    if left:
        yield left


def not_utf8(name: str, line: int, error: UnicodeDecodeError) -> InvalidFile:
    return InvalidFile(
        f"{name}: line {line}: byte 0x{error.object[error.start]:02x} is not UTF-8; save the file as UTF-8, "
        "for example with `iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW`"
    )


def csv_pieces(chunks: Iterable[bytes], delimiter: str, name: str) -> Iterator[Piece]:
    """As `pieces`, of CSV, whose first record is HEADER. Raises: as `csv_records`."""
    record = HEADER - 1
    for found in csv_records(chunks, delimiter, name):
        is_record = bool(found.fields) or found.problem is not None
        record += is_record
        yield Piece(record if is_record else None, found.data)


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


def picked(found: Iterable[Piece], indexes: Iterable[int], *, instead: bytes = b"") -> Iterator[bytes]:
    """The bytes of the records with these ascending indexes, after the header of CSV. `instead`: of each other line
    before the last of them.
    """
    wanted = iter(indexes)
    following = next(wanted, None)
    for piece in found:
        while following is not None and piece.record is not None and following < piece.record:
            following = next(wanted, None)
        if following is None:
            return
        if piece.record in {following, HEADER}:
            yield piece.data
        elif instead and piece.data.endswith(b"\n"):
            yield instead


def ends_of_parts(total: int, *, lines: int | None = None, parts: int | None = None) -> list[int]:
    """Where each part ends: parts of `lines` records and a rest, or `parts` whose sizes differ by at most one."""
    if lines is not None:
        return [*range(lines, total, lines), total]
    num = min(parts or 1, total)
    return [total * n // num for n in range(1, num + 1)]
