"""Cuts a file of lines into records byte for byte, draws a uniform sample of them, and shares them out to parts.

A record is a line that is not blank. Parses no JSON; memory holds at most one chunk and one line. Pure.
"""

import random
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from batchfile.lines.framing import BOM
from batchfile.types import LINE_BYTES_MAX


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
