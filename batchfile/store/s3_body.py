"""The body of a bucket's answer, read within written limits of time, and never shorter than was promised.

A client's own timeouts are between two bytes: at one byte now and then a record would hold its reader for hours.
"""

import re
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from batchfile.errors import StoreUnavailable, StoreUnfit
from batchfile.store.conformance import FIT_STORES
from batchfile.store.s3_errors import translated

CHUNK_BYTES = 1024 * 1024
RECORD_S = 30.0  # for a whole object that is read at once, and for each further `RECORD_BYTES`
RECORD_BYTES = 2 * 1024 * 1024
STREAM_WINDOW_S = 60.0  # a stream brings at least `STREAM_BYTES_MIN` in it, or its end
STREAM_BYTES_MIN = 64 * 1024
_PIECE_BYTES = 256 * 1024  # read at a time at most
_PASS_ON_S = 1.0  # a reader of a slow stream hears of it this often: it may have a lease to renew

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class TooSlow(StoreUnavailable):
    """Bytes came, too few of them. Reading on brings more, and may last for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """What an answer has of an object: up to `end`, None: to be read to its end; and how far it should have gone."""

    end: int | None
    wanted_end: int | None


def extent(what: str, answer: Any, start: int, end: int | None) -> Extent:
    """Of the answer to a read of the range [start, end). Raises: StoreUnfit where it is another range."""
    found = _CONTENT_RANGE.fullmatch(answer.get("ContentRange") or "")
    if found is not None:
        first, stop, total = int(found[1]), int(found[2]) + 1, found[3]
        wanted = end if total == "*" else min(int(total), int(total) if end is None else end)
        if first == start and (end is None or stop <= end):
            return Extent(end=stop, wanted_end=wanted)
    elif start == 0:
        length = answer.get("ContentLength")
        if end is None or (length is not None and length <= end):
            return Extent(end=length, wanted_end=length)
    raise StoreUnfit(f"{what} ignores ranges of a read. {FIT_STORES}")


def read_record(key: str, answer: Any, found: Extent) -> bytes:
    """The whole body. Raises: StoreUnavailable where it is too slow, or ends early."""
    limit_s = RECORD_S * (1 + (found.end or 0) // RECORD_BYTES)
    started_at, data = time.monotonic(), bytearray()
    with closing(_pieces(key, answer, found.end)) as pieces:
        for piece in pieces:
            data += piece
            if len(data) != found.end and time.monotonic() - started_at > limit_s:
                raise StoreUnavailable(f"{key}: only {len(data):,} bytes came in {limit_s:.0f} s")
    if found.wanted_end is not None and len(data) < found.wanted_end:
        raise StoreUnavailable(f"{key}: the answer ended {found.wanted_end - len(data):,} bytes early")
    return bytes(data)


def read_chunks(key: str, answer: Any, length: int | None) -> Generator[bytes, None, None]:
    """`length` bytes, None: all there are, in chunks of at most 1 MiB.

    What came before an error is passed on first. Raises: TooSlow, and StoreUnavailable where it ends early.
    """
    pending, passed_on_at = bytearray(), time.monotonic()
    with closing(_paced(key, _pieces(key, answer, length), length)) as pieces:
        try:
            for piece in pieces:
                pending += piece
                if len(pending) > CHUNK_BYTES - _PIECE_BYTES or time.monotonic() - passed_on_at >= _PASS_ON_S:
                    yield bytes(pending)
                    pending, passed_on_at = bytearray(), time.monotonic()
        except StoreUnavailable:
            if pending:
                yield bytes(pending)
            raise
    if pending:
        yield bytes(pending)


def _paced(key: str, pieces: Generator[bytes, None, None], length: int | None) -> Generator[bytes, None, None]:
    """The same. Raises: TooSlow where a window of time brings too few bytes. What the reader does does not count."""
    num_bytes, num_in_window, window_s = 0, 0, 0.0
    with closing(pieces):
        while True:
            asked_at = time.monotonic()
            piece = next(pieces, None)
            window_s += time.monotonic() - asked_at
            if piece is None:
                return
            yield piece
            num_bytes, num_in_window = num_bytes + len(piece), num_in_window + len(piece)
            if window_s >= STREAM_WINDOW_S and num_bytes != length:
                if num_in_window < STREAM_BYTES_MIN:
                    raise TooSlow(f"{key}: only {num_in_window:,} bytes came in {window_s:.0f} s")
                num_in_window, window_s = 0, 0.0


def _pieces(key: str, answer: Any, length: int | None) -> Generator[bytes, None, None]:
    """As they come, so that nothing waits for more than the next. Raises: StoreUnavailable where it ends early."""
    left = length
    with answer["Body"] as raw:  # urllib3's own response: botocore's `read` waits until it has all it was asked for
        while left is None or left > 0:
            with translated(key):
                piece = raw.read1(_PIECE_BYTES if left is None else min(_PIECE_BYTES, left))
            if not piece:
                if left:
                    raise StoreUnavailable(f"{key}: the answer ended {left:,} bytes early")
                return
            if left is not None:
                left -= len(piece)
            yield piece
        if length is not None:
            with translated(key):
                raw.read1(1)  # to the end of the answer, so that the connection can be used again
