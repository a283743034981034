"""The process that converts one file: `python -m batchfile.lines.converter_child NAME KIND SIZE MEMORY_BYTES`.

Its stdin and stdout are the frames of `converter`. It dies with its parent, whose pipes then break.
"""

import io
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, BinaryIO, cast

from batchfile.errors import InvalidFile
from batchfile.lines.converter import ASK, END, FRAME, INVALID, LINES, NO_MEMORY, READ
from batchfile.lines.file_formats import CHUNK_BYTES, Format, open_text

CPU_S_MAX = 60  # between two chunks
_STDIN, _STDOUT = 0, 1


def main(name: str, kind: Format, size: int, memory_bytes: int) -> None:
    stream = io.BufferedReader(_Asked(size if kind == "parquet" else None), CHUNK_BYTES)
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


def _lines(name: str, kind: Format, stream: BinaryIO, memory_bytes: int) -> Iterator[bytes]:
    if kind != "parquet":
        _limit_memory(memory_bytes)
        _limit_time()
        return open_text(name, kind, stream)
    from batchfile.lines.parquet import load, parquet_lines

    load()  # before the limits hold: they are for the file
    _limit_memory(memory_bytes)
    _limit_time()
    return parquet_lines(name, stream)


def _limit_memory(num_bytes: int) -> None:
    """Beyond what this process has now. A system that knows no such limit (macOS) has none."""
    with suppress(OSError, ValueError):
        with open("/proc/self/statm", "rb") as file:
            now = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (now + num_bytes, resource.RLIM_INFINITY))


def _limit_time() -> None:
    """Of CPU, from now on: a machine that is busy or asleep does not count."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    with suppress(OSError, ValueError):
        limit = int(used.ru_utime + used.ru_stime) + CPU_S_MAX
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


class _Asked(io.RawIOBase):
    """The file, as the parent reads it for us. `size` None: from its start to its end only."""

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
        data = _answer()
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _answer() -> bytes:
    _, size = FRAME.unpack(_receive(FRAME.size))
    return _receive(size)


def _receive(size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        data = os.read(_STDIN, size - len(received))
        if not data:
            os._exit(1)  # nobody is there any more
        received += data
    return bytes(received)


def _send(letter: bytes, data: bytes) -> None:
    view = memoryview(FRAME.pack(letter, len(data)) + data)
    while view:
        try:
            view = view[os.write(_STDOUT, view) :]
        except BrokenPipeError:
            os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1], cast(Format, sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
