"""Bitmaps of lines: an int in memory, a hex string in a stored document."""

from collections.abc import Iterable, Iterator


def parse(text: str) -> int:
    return int(text, 16)


def render(bits: int) -> str:
    return f"{bits:x}"


def of(lines: Iterable[int]) -> int:
    bits = 0
    for line in lines:
        bits |= 1 << line
    return bits


def lines(bits: int) -> Iterator[int]:
    """The lines that are set, in ascending order."""
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low
