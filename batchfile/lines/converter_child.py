"""The process that converts one file: `python -m batchfile.lines.converter_child NAME KIND SIZE MEMORY_BYTES`.

It exchanges frames with `converter` over stdin and stdout, and ends when its parent closes these pipes.
"""

import io
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, BinaryIO, Literal, cast

from batchfile.child_env import limit_memory, write_all
from batchfile.errors import InvalidFile
from batchfile.lines.converter import ASK, END, FRAME, INVALID, IS_PARQUET, LINES, NO_MEMORY, READ
from batchfile.lines.file_formats import CHUNK_BYTES, Conversion, open_text

CPU_S_MAX = 60  # between two chunks
_STDIN, _STDOUT = 0, 1


def main(name: str, kind: Conversion, size: int, memory_bytes: int) -> None:
    stream = io.BufferedReader(_Asked(size if kind in IS_PARQUET else None), CHUNK_BYTES)
    try:
        for chunk in _lines(name, kind, cast(BinaryIO, stream), memory_bytes):
            for at in range(0, len(chunk), CHUNK_BYTES):
                _send(LINES, chunk[at : at + CHUNK_BYTES])
            _limit_time()
    except InvalidFile as error:
        _send(INVALID, str(error).encode(errors="replace")[:CHUNK_BYTES])
    except MemoryError:
        _send(NO_MEMORY, b"")
    else:
        _send(END, b"")


def _lines(name: str, kind: Conversion, stream: BinaryIO, memory_bytes: int) -> Iterator[bytes]:
    if kind in IS_PARQUET:
        import pyarrow.parquet  # noqa: F401 before the limits apply, which are for the file

        from batchfile.lines.parquet import parquet_columns, parquet_lines
    limit_memory(memory_bytes)
    _limit_time()
    if kind == "parquet-columns":
        return parquet_columns(name, stream)
    if kind in IS_PARQUET:
        return parquet_lines(name, stream, as_rows=kind == "parquet-rows")
    return open_text(name, cast(Literal["jsonl", "gzip", "zstd"], kind), stream)


def _limit_time() -> None:
    """Restarts the limit on CPU time, which does not depend on how busy the machine is."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    with suppress(OSError, ValueError):
        limit = int(used.ru_utime + used.ru_stime) + CPU_S_MAX
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


class _Asked(io.RawIOBase):
    """The file, read through the parent. `size`: None if it is not seekable."""

    def __init__(self, size: int | None) -> None:
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._size is not None

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size or 0}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        _send(READ, ASK.pack(self._at, len(buffer)))
        _, size = FRAME.unpack(_receive(FRAME.size))
        data = _receive(size)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _receive(size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        data = os.read(_STDIN, size - len(received))
        if not data:
            os._exit(1)  # the parent has ended
        received += data
    return bytes(received)


def _send(letter: bytes, data: bytes) -> None:
    try:
        write_all(_STDOUT, FRAME.pack(letter, len(data)) + data)
    except BrokenPipeError:
        os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1], cast(Conversion, sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
