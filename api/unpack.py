"""Request bodies that were packed, unpacked piece by piece as they arrive. Knows no HTTP but the names of encodings."""

import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

from batchfile.errors import InvalidFile
from batchfile.lines.formats import zstd

PIECE_BYTES = 1024 * 1024  # at most so much comes out at once, whatever goes in
ZSTD_WINDOW_LOG_MAX = 23  # 8 MiB, as RFC 8878 advises to receivers; `zstd -1` to `-19` need no more


class Unpacker(Protocol):
    def unpack(self, data: bytes) -> Iterator[bytes]:
        """What `data` adds, in pieces. Raises: InvalidFile where it is damaged."""
        ...

    def finish(self) -> None:
        """Nothing follows. Raises: InvalidFile where the data ends in the middle."""
        ...


class Plain:
    def unpack(self, data: bytes) -> Iterator[bytes]:
        yield data

    def finish(self) -> None:
        pass


class Gzip:
    """One member after the other, as the format allows."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(31)
        self._is_begun = False

    def unpack(self, data: bytes) -> Iterator[bytes]:
        while True:
            self._is_begun = self._is_begun or bool(data)
            try:
                piece = self._member.decompress(data, PIECE_BYTES)
            except zlib.error as error:
                raise _damaged("gzip", error) from None
            if piece:
                yield piece
            data = self._member.unconsumed_tail
            if self._member.eof:
                data = self._member.unused_data
                self._member, self._is_begun = zlib.decompressobj(31), False
            if not data and len(piece) < PIECE_BYTES:
                return

    def finish(self) -> None:
        if self._is_begun:
            raise _cut_off("gzip")


class Zstd:
    """One frame after the other, as the format allows."""

    def __init__(self) -> None:
        self._frame = self._new()
        self._is_begun = False

    @staticmethod
    def _new() -> zstd.ZstdDecompressor:
        return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG_MAX})

    def unpack(self, data: bytes) -> Iterator[bytes]:
        while True:
            self._is_begun = self._is_begun or bool(data)
            try:
                piece = self._frame.decompress(data, PIECE_BYTES)
            except zstd.ZstdError as error:
                raise _damaged("zstd", error) from None
            if piece:
                yield piece
            data = b""
            if self._frame.eof:
                data = self._frame.unused_data
                self._frame, self._is_begun = self._new(), False
            if not data and self._frame.needs_input:
                return

    def finish(self) -> None:
        if self._is_begun:
            raise _cut_off("zstd")


ENCODINGS: dict[str, Callable[[], Unpacker]] = {
    "": Plain,
    "identity": Plain,
    "gzip": Gzip,
    "x-gzip": Gzip,
    "zstd": Zstd,
}


def _damaged(name: str, error: Exception) -> InvalidFile:
    return InvalidFile(f"the body is no {name} data, or it was damaged on its way ({error}); pack and send it again")


def _cut_off(name: str) -> InvalidFile:
    return InvalidFile(f"the {name} data of the body ends in the middle; send it whole")
