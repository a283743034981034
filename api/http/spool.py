"""Spools a request body to disk: decompressed, hashed, limited in size, and deleted with the request.

Memory holds a few MiB of it. After Content-Encoding is undone, the format of the bytes is detected as for any file.
"""

import asyncio
import errno
import hashlib
import mmap
import os
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Self

from batchfile.errors import TooLarge
from batchfile.lines.file_formats import Packing, PlainText, Unpacker
from batchfile.settings_tables import Api

from .errors import AnyRequest, Refusal

FLUSH_BYTES = 1024 * 1024  # collected before a thread writes them: a thread switch costs as much as 50 KB
BODY_S_MAX = 3600.0  # the limit for a whole body, even if bytes keep arriving
NAME = "the body"
HINT = "compress and send it again"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ENCODINGS: dict[str, Packing | None] = {
    "": None,
    "identity": None,
    "gzip": "gzip",
    "x-gzip": "gzip",
    "zstd": "zstd",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolLimits:
    """`bytes_max`: of a body, both compressed and decompressed. `wait_s`: for the next byte.

    `folder` None: the system's temporary folder.
    """

    bytes_max: int
    wait_s: float
    folder: Path | None = None

    @classmethod
    def of(cls, api: Api) -> Self:
        return cls(bytes_max=api.body_bytes_max, wait_s=api.body_wait_s, folder=api.spool_dir)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spooled:
    """A body on disk. `size` (bytes) and `sha256` are of the decompressed body."""

    fd: int
    size: int
    sha256: str

    def view(self) -> memoryview:
        """The body, memory-mapped read-only."""
        if not self.size:
            return memoryview(b"")
        return memoryview(mmap.mmap(self.fd, self.size, access=mmap.ACCESS_READ))

    def scratch(self) -> memoryview:
        """The body, memory-mapped copy-on-write: only changed pages use memory."""
        if not self.size:
            return memoryview(bytearray())
        return memoryview(mmap.mmap(self.fd, self.size, access=mmap.ACCESS_COPY))


@asynccontextmanager
async def spool(
    stream: AsyncIterable[bytes],
    *,
    content_encoding: str | None,
    content_length: int | None,
    limits: SpoolLimits,
) -> AsyncIterator[Spooled]:
    """The whole body, in an unnamed file that is deleted afterwards.

    Raises: Refusal (408, 415, 503), TooLarge, InvalidFile (not text, or damaged compressed data), and what `stream`
    raises.
    """
    encoding = (content_encoding or "").strip().lower()
    if encoding not in _ENCODINGS:
        raise Refusal(415, f"Content-Encoding: {encoding[:40]!r} is not supported; use gzip, zstd or none.")
    if content_length is not None and content_length > limits.bytes_max:
        raise _too_large(limits.bytes_max)
    with _unnamed_file(limits) as file:
        sink = _Sink(file.fileno(), _ENCODINGS[encoding], limits)
        await _receive(stream, sink, limits.wait_s)
        yield Spooled(fd=file.fileno(), size=sink.size, sha256=sink.digest.hexdigest())


def spool_body(request: AnyRequest, limits: SpoolLimits) -> AbstractAsyncContextManager[Spooled]:
    """The body of a request, with its headers applied. Raises: as `spool`."""
    length = request.headers.get("content-length")
    return spool(
        request.stream(),
        content_encoding=request.headers.get("content-encoding"),
        content_length=int(length) if length else None,
        limits=limits,
    )


async def _receive(stream: AsyncIterable[bytes], sink: "_Sink", wait_s: float) -> None:
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + BODY_S_MAX
    chunks = aiter(stream)
    pending: list[bytes] = []
    size = 0
    while True:
        try:
            async with asyncio.timeout_at(min(loop.time() + wait_s, ends_at)):
                chunk = await anext(chunks, None)
        except TimeoutError:
            wait = f"no data for {wait_s:g} s" if loop.time() < ends_at else f"{BODY_S_MAX:g} s"
            raise Refusal(
                408, f"The body arrived too slowly: {wait}. Send it again.", {"Connection": "close"}
            ) from None
        if chunk is None:
            break
        pending.append(chunk)
        size += len(chunk)
        if size >= FLUSH_BYTES:
            await asyncio.to_thread(sink.write, pending)
            pending, size = [], 0
    await asyncio.to_thread(sink.finish, pending)


class _Sink:
    """Decompresses and writes the bytes. Its methods block, and are called from one thread at a time."""

    def __init__(self, fd: int, packing: Packing | None, limits: SpoolLimits) -> None:
        self.size = 0
        self.digest = hashlib.sha256()
        self._num_received = 0
        self._num_decoded = 0
        self._fd = fd
        self._unpacker = None if packing is None else Unpacker(packing, NAME, HINT)
        self._text = PlainText(NAME, HINT)
        self._limits = limits

    def write(self, chunks: list[bytes]) -> None:
        data = b"".join(chunks)
        self._num_received += len(data)
        self._check(self._num_received)
        for decoded in (data,) if self._unpacker is None else self._unpacker.unpack(data):
            self._num_decoded += len(decoded)
            self._check(self._num_decoded)
            for piece in self._text.read(decoded):
                self._keep(piece)

    def finish(self, chunks: list[bytes]) -> None:
        self.write(chunks)
        if self._unpacker is not None:
            self._unpacker.finish()
        for piece in self._text.finish():
            self._keep(piece)

    def _keep(self, piece: bytes) -> None:
        self.size += len(piece)
        self._check(self.size)
        self.digest.update(piece)
        try:
            left = memoryview(piece)
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError as error:
            raise _no_room(self._limits, error) from error

    def _check(self, size: int) -> None:
        if size > self._limits.bytes_max:
            raise _too_large(self._limits.bytes_max)


def _unnamed_file(limits: SpoolLimits) -> IO[bytes]:
    try:
        return TemporaryFile(dir=limits.folder, buffering=0)
    except OSError as error:
        raise _no_room(limits, error) from error


def _no_room(limits: SpoolLimits, error: OSError) -> Exception:
    if error.errno not in _FULL:
        return error
    where = limits.folder or "its temporary folder"
    return Refusal(503, f"The server has no disk space for the body in {where}; retry later.", {"Retry-After": "60"})


def _too_large(bytes_max: int) -> TooLarge:
    return TooLarge(f"the body is larger than {bytes_max:,} bytes (decompressed); send the requests in several batches")
