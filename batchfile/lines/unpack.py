"""Compressed data into plain bytes, piece by piece as it arrives: gzip and Zstandard. Knows no file and no HTTP.

CPU and memory are bounded by what comes in and what comes out: members that carry next to nothing are rejected, because
each costs as much as a thousand bytes.
"""

import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

from batchfile.errors import InvalidFile

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["Packing", "Unpacker", "zstd"]

Packing = Literal["gzip", "zstd"]

PIECE_BYTES = 1024 * 1024  # at most this much is unpacked at once, whatever goes in
FEED_BYTES = 16 * 1024  # given to zlib at once: what it does not use it copies, once a member
MEMBERS_FREE = 10_000  # gzip members or Zstandard frames of any size
MEMBER_BYTES_MIN = 1024  # unpacked, on average, of a stream with more members
HEAD_BYTES = 4  # enough to tell what the data is
ZSTD_WINDOW_LOG_MAX = 23  # 8 MiB, as RFC 8878 advises to receivers; `zstd -1` to `-19` need no more

_DAMAGE = (zlib.error, zstd.ZstdError)


def _new_gzip() -> Any:
    return zlib.decompressobj(31)


def _new_zstd() -> Any:
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG_MAX})


_MAGIC: dict[Packing, bytes] = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}
SKIPPABLE = b"\x2a\x4d\x18"  # how a Zstandard frame without data begins, after its first byte
_NEW: dict[Packing, Callable[[], Any]] = {"gzip": _new_gzip, "zstd": _new_zstd}


class Unpacker:
    """One stream: members (gzip) or frames (Zstandard), one after the other, as both formats allow.

    `name` and `hint` are for messages: what the data is, and what to do where it is damaged.
    """

    def __init__(self, kind: Packing, name: str, hint: str) -> None:
        self._kind = kind
        self._name = name
        self._hint = hint
        self._member = _NEW[kind]()
        self._is_begun = False  # the current member
        self._num_members = 0
        self._size = 0
        self._head = b""

    def unpack(self, data: bytes) -> Iterator[bytes]:
        """What `data` adds, in pieces of at most PIECE_BYTES. Raises: InvalidFile."""
        self._head += data[: HEAD_BYTES - len(self._head)]
        for at in range(0, len(data), FEED_BYTES):
            yield from self._feed(data[at : at + FEED_BYTES])

    def finish(self) -> None:
        """Nothing follows. Raises: InvalidFile where the data ends in the middle."""
        if self._is_begun:
            raise self._invalid("ends in the middle,")

    def _feed(self, data: bytes) -> Iterator[bytes]:
        while True:
            if self._num_members and not self._is_begun and self._kind == "gzip":
                data = data.lstrip(b"\0")  # padding after a member, as gzip's own tools take it
            self._is_begun = self._is_begun or bool(data)
            try:
                piece = self._member.decompress(data, PIECE_BYTES)
            except _DAMAGE:
                raise self._invalid("is damaged") from None
            self._size += len(piece)
            if piece:
                yield piece
            data = b"" if self._kind == "zstd" else self._member.unconsumed_tail
            if self._member.eof:
                data = self._member.unused_data
                self._next_member()
            if not data and self._is_drained(piece):
                return

    def _is_drained(self, piece: bytes) -> bool:
        """Does the member need more input before it can give more?"""
        return bool(self._member.needs_input) if self._kind == "zstd" else len(piece) < PIECE_BYTES

    def _next_member(self) -> None:
        self._num_members += 1
        if self._num_members > MEMBERS_FREE and self._size < self._num_members * MEMBER_BYTES_MIN:
            members = "members" if self._kind == "gzip" else "frames"
            raise InvalidFile(
                f"{self._name}: the {self._kind} data has over {MEMBERS_FREE:,} {members} that hold next to nothing; "
                "compress the text as one stream"
            )
        self._member, self._is_begun = _NEW[self._kind](), False

    def _invalid(self, what: str) -> InvalidFile:
        if not self._head.startswith(_MAGIC[self._kind]) and self._head[1:] != SKIPPABLE:
            return InvalidFile(f"{self._name}: is not {self._kind} data; {self._hint}")
        return InvalidFile(
            f"{self._name}: the {self._kind} data {what} after {self._size:,} bytes of text; {self._hint}"
        )
