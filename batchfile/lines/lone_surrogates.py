"""Lone surrogates, as JavaScript writes them where a string was cut inside an emoji: `\\ud83d` alone.

Any JSON may have them and no UTF-8 can carry them, so that no parser of ours reads the string around one. Pure.
"""

import re

PIECE_BYTES = 256 * 1024  # looked at in one go, which nothing else runs beside
PLACEHOLDER = b"\\ufffd"  # as long as a half
FIX = "Cut strings between characters; an emoji is two units in JavaScript."

_ESCAPE_BYTES_MAX = 12  # of a pair
_HALF = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_SOUND = re.compile(
    rb"(?:[^\\]++|\\[^u]|\\u(?:[dD][0-7]|[0-9abcefABCEF][0-9a-fA-F])[0-9a-fA-F]{2}"
    rb"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})*+"
)


def find_lone_surrogate(data: bytes | bytearray | memoryview, start: int = 0) -> int | None:
    """Where the first half begins, from `start` on, which is inside no escape; None where there is none."""
    at, end = start, len(data)
    while at < end:
        stop = min(at + PIECE_BYTES, end)
        found = _SOUND.match(data, at, stop)
        at = found.end() if found else at
        if at == end or (stop < end and at > stop - _ESCAPE_BYTES_MAX):
            continue  # the piece ends here, maybe inside an escape
        return at if _HALF.match(data, at) else None
    return None


def replace_lone_surrogates(data: bytearray | memoryview, num_max: int) -> dict[int, bytes]:
    """A stand-in of the same length for each half, in place.

    Returns: what was where. Empty where there is none, or more than `num_max`.
    """
    replaced: dict[int, bytes] = {}
    at = find_lone_surrogate(data)
    while at is not None and len(replaced) < num_max:
        replaced[at] = bytes(data[at : at + len(PLACEHOLDER)])
        data[at : at + len(PLACEHOLDER)] = PLACEHOLDER
        at = find_lone_surrogate(data, at + len(PLACEHOLDER))
    return replaced if at is None else {}


def without_lone_surrogates(line: bytes) -> bytes | None:
    """The line with a stand-in for each half; None where it has none."""
    data = bytearray(line)
    return bytes(data) if replace_lone_surrogates(data, len(data)) else None
