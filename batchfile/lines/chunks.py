"""Chunks as a file, for what reads only files: decompressors, say."""

from collections.abc import Iterator


class ChunkReader:
    """Chunks as a file object for reading, no more."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = b""

    def read(self, size: int = -1) -> bytes:
        self._left = self._left or next(self._chunks, b"")
        taken = self._left if size < 0 else self._left[:size]
        self._left = self._left[len(taken) :]
        return taken

    def close(self) -> None:
        self._chunks = iter(())
