"""The lines of a part: `[line, status, result]`, one finished request each. Not for users: see `result.py`.

`line` is the request's place in its range. The result travels as bytes, so that assembling parses nothing.
"""

from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Struct

from batchfile.errors import BatchDamaged
from batchfile.types import Status, Usage


class FinishedLine(Struct, frozen=True):
    """One finished request: its place in the range, how it ended, its native result line (no newline).

    `gpu_s`: its share of the seconds that GPUs worked; 0 where there are none.
    """

    line: int
    status: Status
    result: bytes
    usage: Usage = Usage()
    gpu_s: float = 0.0


class PartLine(NamedTuple):
    line: int
    status: Status
    result: bytes


_STATUS: dict[bytes, Status] = {
    b'"succeeded"': "succeeded",
    b'"errored"': "errored",
    b'"canceled"': "canceled",
    b'"expired"': "expired",
}


def encode_part(lines: Sequence[FinishedLine]) -> bytes:
    return b"".join([b'[%d,"%s",%s]\n' % (item.line, item.status.encode(), item.result) for item in lines])


def decode_part(data: bytes) -> list[PartLine]:
    """Raises: BatchDamaged where the bytes are no part (the digest was checked before: this is a bug)."""
    lines = []
    try:
        for row in data[:-1].split(b"\n"):
            number, status, result = row[1:-1].split(b",", 2)
            lines.append(PartLine(int(number), _STATUS[status], result))
    except (ValueError, KeyError) as error:
        raise BatchDamaged(f"a part holds a line that is none: {error}") from error
    return lines
