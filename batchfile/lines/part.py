"""The lines of a part: `[line, status, result]`, one finished request each. Not for users: see `result.py`.

`line` is the request's place in its range. The result travels as bytes, so that assembling parses nothing.
"""

from collections.abc import Iterable, Sequence

from msgspec import Struct

from batchfile.errors import BatchDamaged
from batchfile.words import Status, Usage


class FinishedLine(Struct, frozen=True):
    """One finished request: its place in the range, how it ended, its native result line (no newline)."""

    line: int
    status: Status
    result: bytes
    usage: Usage = Usage()


class PartLine(Struct, frozen=True):
    line: int
    status: str
    result: bytes


def encode_part(lines: Sequence[FinishedLine]) -> bytes:
    return b"".join([b'[%d,"%s",%s]\n' % (item.line, item.status.encode(), item.result) for item in lines])


def decode_part(data: bytes) -> Iterable[PartLine]:
    """Raises: BatchDamaged where the bytes are no part (the digest was checked before: this is a bug)."""
    for row in data.split(b"\n"):
        if not row:
            continue
        number, _, rest = row[1:-1].partition(b",")
        status, _, result = rest.partition(b",")
        if not number.isdigit() or not result:
            raise BatchDamaged(f"a part holds a line that is none: {row[:80]!r}")
        yield PartLine(int(number), status[1:-1].decode(), result)
