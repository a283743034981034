"""Bitmaps of lines: an int in memory, a hex string in a stored document."""

from collections.abc import Iterable, Iterator
from itertools import compress, count


def parse(text: str) -> int:
    return int(text, 16)


def render(bits: int) -> str:
    return f"{bits:x}"


def of(lines: Iterable[int]) -> int:
    bits = bytearray()  # an int would be copied for each line
    for line in lines:
        at = line >> 3
        if at >= len(bits):
            bits.extend(bytes(at + 1 - len(bits)))
        bits[at] |= 1 << (line & 7)
    return int.from_bytes(bits, "little")


def lines(bits: int) -> Iterator[int]:
    """The lines that are set, in ascending order."""
    return compress(count(), map("1".__eq__, reversed(f"{bits:b}")))
