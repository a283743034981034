"""Converts a file in a child process, so that a malicious or damaged file cannot crash a service or an engine.

The child has limits on memory and time (see `converter_child`) and none of this process's secrets. It requests the
bytes of the file over a pipe, so it opens no files. A frame is one letter, a length and that many bytes.
"""

import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from batchfile.child_env import child_environment, write_all
from batchfile.errors import ConverterKilled, InvalidFile, check_installed
from batchfile.lines.file_formats import CHUNK_BYTES, Conversion

MEMORY_BYTES_MAX = 2 * 1024**3  # in addition to what the child needs to start; at most half of a container's limit
SILENT_S_MAX = 600.0  # without a frame from the child; its CPU time has a separate limit
BEAT_S = 1.0
FRAME = struct.Struct(">cQ")
ASK = struct.Struct(">QQ")  # an offset and a number of bytes
READ, LINES, INVALID, NO_MEMORY, END = b"R", b"L", b"E", b"M", b"."

IS_PARQUET = ("parquet", "parquet-rows", "parquet-columns")

# One thread and one arena: the limit is on address space, which would otherwise be far larger than memory.
_THRIFTY = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "ARROW_IO_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
}
_CGROUP_LIMIT = "/sys/fs/cgroup/memory.max"
# Signals from the system or an operator; any other end of the child is caused by the file.
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def convert(
    name: str, kind: Conversion, stream: BinaryIO, *, beat: Callable[[], None] = lambda: None
) -> Iterator[bytes]:
    """The file as JSONL of requests or rows, in chunks of at most 1 MiB. `name` is for messages; Parquet needs a
    seekable stream.

    `beat` is called about every second, also while no data arrives.
    Raises: InvalidFile, also if the file takes too much memory or time or crashes the child; ConverterKilled;
    SettingsError if Parquet support is not installed; and any error of the stream or of `beat`.
    """
    if kind in IS_PARQUET:
        check_installed("pyarrow", extra="parquet", what=name)
    size = stream.seek(0, os.SEEK_END) if kind in IS_PARQUET else 0
    child = subprocess.Popen(
        _command(name, kind, size),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        env=child_environment(**_THRIFTY),
        start_new_session=True,  # so that Ctrl-C reaches only this process
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        while True:
            letter, data = _frame(name, child.stdout.fileno(), beat)
            beat()
            if letter == LINES:
                yield data
            elif letter == READ:
                answer = _read(stream, kind, *ASK.unpack(data))
                with suppress(BrokenPipeError):  # that it ended is noticed at the next read
                    write_all(child.stdin.fileno(), FRAME.pack(READ, len(answer)) + answer)
            elif letter == INVALID:
                raise InvalidFile(data.decode())
            elif letter == NO_MEMORY:
                raise InvalidFile(_too_large(name))
            elif letter == END:
                return
            else:
                raise _ended(name, child.wait())
    finally:
        child.kill()
        child.stdin.close()
        child.stdout.close()
        child.wait()


def _command(name: str, kind: Conversion, size: int) -> list[str]:
    arguments = (name, kind, str(size), str(_memory_bytes()))
    return [sys.executable, "-P", "-m", "batchfile.lines.converter_child", *arguments]


def _memory_bytes() -> int:
    try:
        return min(MEMORY_BYTES_MAX, int(Path(_CGROUP_LIMIT).read_text()) // 2)
    except (OSError, ValueError):  # no limit, or not Linux
        return MEMORY_BYTES_MAX


def _read(stream: BinaryIO, kind: Conversion, offset: int, size: int) -> bytes:
    if kind in IS_PARQUET:
        stream.seek(offset)
    return stream.read(min(size, CHUNK_BYTES))


def _frame(name: str, fd: int, beat: Callable[[], None]) -> tuple[bytes, bytes]:
    """The next frame; an empty letter if the child has ended."""
    head = _receive(name, fd, FRAME.size, beat)
    if len(head) < FRAME.size:
        return b"", b""
    letter, size = FRAME.unpack(head)
    data = _receive(name, fd, min(size, CHUNK_BYTES), beat)
    return (letter, data) if len(data) == size else (b"", b"")


def _receive(name: str, fd: int, size: int, beat: Callable[[], None]) -> bytes:
    received = bytearray()
    deadline = time.monotonic() + SILENT_S_MAX
    readable = select.poll()  # unlike select, it supports descriptors above 1,023
    readable.register(fd, select.POLLIN)
    while len(received) < size:
        if not readable.poll(BEAT_S * 1000):
            if time.monotonic() >= deadline:
                raise InvalidFile(f"{name}: reading it made no progress for {SILENT_S_MAX:.0f} s; write it again")
            beat()
            continue
        data = os.read(fd, size - len(received))
        if not data:
            break
        received += data
    return bytes(received)


def _too_large(name: str) -> str:
    return (
        f"{name}: takes more than {_memory_bytes() // 2**20:,} MiB of memory to read: a value, a page or a dictionary "
        "in it is too large; write it again in smaller pages or row groups, or as JSONL"
    )


def _ended(name: str, code: int) -> Exception:
    if -code in _FROM_OUTSIDE:
        return ConverterKilled(
            f"{name}: the process reading it was killed (signal {-code}), perhaps because this machine has too "
            "little memory; try again, or split the file"
        )
    if code == -signal.SIGXCPU:
        return InvalidFile(f"{name}: takes too much time to read; write it again in smaller row groups, or as JSONL")
    if code == -signal.SIGABRT:
        return InvalidFile(_too_large(name))
    how = f"signal {-code}" if code < 0 else f"exit status {code}"
    return InvalidFile(f"{name}: crashed the process reading it ({how}), so the file is damaged; write it again")
