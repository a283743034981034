"""Inspects a local input, and brings it into the store.

A plain file of requests is referenced if the store supports that; any other input (compressed, Parquet, rows, stdin, a
limited run) is streamed into the store once, as JSONL of requests. Knows no batch.
"""

import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, cast

from batchfile.errors import InvalidFile
from batchfile.lines.file_formats import (
    CHUNK_BYTES,
    HEAD_BYTES,
    ChunkReader,
    FileFormat,
    detect,
    open_lines,
    plain_head,
)
from batchfile.lines.framing import iter_lines
from batchfile.lines.kinds import KIND_BYTES, Kind
from batchfile.lines.kinds import detect as detect_kind
from batchfile.lines.records import drawn
from batchfile.lines.split_document import elements
from batchfile.local.options import STDIN
from batchfile.local.remote_inputs import RemoteFile, is_url, open_remote, path_of
from batchfile.rows.table import Table
from batchfile.store.base import Store

OnBytes = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An inspected input. `name`: for messages; of a file, its absolute path. `path` None: it is at an address
    (`remote`), or stdin.

    `stamp`: stays equal while the file is not modified (inode, size, mtime, ctime; or of a server); may be empty.
    `size` in bytes; 0: unknown. `table`: how its rows become requests; None if it has requests. `sample`: run only so
    many of them, chosen by a seed.
    """

    name: str
    path: str | None
    format: FileFormat
    kind: Kind
    table: Table | None = None
    stamp: str = ""
    size: int = 0
    head: bytes = b""
    sample: tuple[int, int] | None = None
    remote: RemoteFile | None = None

    @property
    def is_plain(self) -> bool:
        """Are its own bytes the JSONL of its requests?"""
        is_jsonl = self.format == "jsonl" and self.kind.layout == "jsonl"
        return is_jsonl and self.table is None and self.sample is None

    @property
    def is_repeatable(self) -> bool:
        """Can it be read more than once?"""
        return self.path is not None or self.remote is not None


def inspect(path: str) -> Source:
    """`path`: of a file, an address, or - for stdin. Raises: InvalidFile where the input cannot be used."""
    if path == STDIN:
        return _inspect_stdin(sys.stdin.buffer)
    if is_url(path):
        found = open_remote(path)
        known = {"name": found.name, "path": None, "stamp": found.version, "size": found.size, "remote": found}
        return _detected(path_of(path), found.head, **known)
    absolute = os.path.abspath(path)
    try:
        absolute.encode()
    except UnicodeEncodeError:
        raise InvalidFile(f"{path!r}: is not a UTF-8 name; rename the file") from None
    try:
        status = os.stat(absolute)
    except (FileNotFoundError, NotADirectoryError):
        raise InvalidFile(f"{path}: no such file") from None
    except OSError as error:
        raise InvalidFile(f"{path}: cannot be read: {error.strerror}") from None
    if stat.S_ISDIR(status.st_mode):
        raise InvalidFile(f"{path}: is a directory; use a file of requests, or a folder as the output: -o results/")
    if not stat.S_ISREG(status.st_mode):
        raise InvalidFile(f"{path}: is not a regular file; pipe it to stdin and use - as the input")
    if status.st_size == 0:
        raise InvalidFile(f"{path}: is empty; it needs at least one request line")
    try:
        with open(absolute, "rb") as file:
            head = file.read(KIND_BYTES)
    except OSError as error:
        raise InvalidFile(f"{path}: cannot be read: {error.strerror}; check its permissions") from None
    return _detected(path, head, name=absolute, path=absolute, stamp=stamp_of(status), size=status.st_size)


def _detected(name: str, head: bytes, /, **more: Any) -> Source:
    found = detect(name, head[:HEAD_BYTES])
    return Source(format=found, kind=detect_kind(name, plain_head(name, found, head, KIND_BYTES)), **more)


def stamp_of(status: os.stat_result) -> str:
    """Includes ctime, because mtime can be set back after a write and ctime cannot."""
    return f"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}-{status.st_ctime_ns:x}"


def digest_of(source: Source) -> str:
    """sha256 of the file's own bytes. Raises: InvalidFile where it changes meanwhile."""
    assert source.path is not None
    digest = file_digest(source.path)
    check_untouched(source)
    return digest


def file_digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_untouched(source: Source) -> None:
    """Raises: InvalidFile where the file is no longer the one that was inspected."""
    if source.path is not None and stamp_of(os.stat(source.path)) != source.stamp:
        raise InvalidFile(f"{source.path}: was changed while it was read; run the command again once it is complete")


def is_added_to(source: Source) -> bool:
    """Is the file longer than when it was inspected?"""
    try:
        return source.path is not None and os.stat(source.path).st_size > source.size
    except OSError:
        return False


def bring_in(store: Store, source: Source, key: str, *, limit: int | None = None) -> bool:
    """Store the first `limit` requests of `source` as the object `key`. True: the object refers to the file itself.

    Raises: InvalidFile (damaged data, a missing column); OSError where the disk is full.
    """
    is_linkable = source.is_plain and source.path is not None and limit is None
    if is_linkable and source.path is not None and store.link(key, source.path) is not None:
        return True
    with store.writer(key, is_new=True) as writer:
        for chunk in requests_of(source, limit):
            writer.write(chunk)
        check_untouched(source)
        writer.commit()
    return False


def requests_of(
    source: Source, limit: int | None = None, on_bytes: OnBytes = lambda num_bytes: None
) -> Iterator[bytes]:
    """The JSONL of the source's requests, or of the first `limit` of them. Raises: InvalidFile."""
    if source.sample is not None:
        lines = sampled(lambda: requests_of(replace(source, sample=None)), *source.sample)
    elif source.table is not None:
        lines = source.table.requests(lines_of(source, on_bytes), source.name)
    else:
        lines = lines_of(source, on_bytes)
    return lines if limit is None else first_requests(lines, limit)


def lines_of(source: Source, on_bytes: OnBytes = lambda num_bytes: None) -> Iterator[bytes]:
    """The text of a source before rows become requests, in chunks: unpacked, and JSON arrays and Parquet as JSONL.

    `on_bytes`: gets the size of each chunk that was read of the source. Raises: InvalidFile where it is damaged, or has
    changed since it was inspected.
    """
    chunks = _unpacked(source, on_bytes)
    yield from elements(chunks, source.name) if source.kind.is_array else chunks
    check_untouched(source)


def _unpacked(source: Source, on_bytes: OnBytes) -> Iterator[bytes]:
    if source.format != "parquet":
        with _stream_of(source, on_bytes) as stream:
            yield from open_lines(source.name, source.format, stream)
        return
    if not source.is_repeatable:
        raise InvalidFile("stdin: Parquet cannot be read from a pipe; use the path of the file")
    with on_disk(source) as path, open(path, "rb") as file:
        yield from open_lines(source.name, source.format, file, as_rows=source.kind.content == "rows")
    on_bytes(source.size)


def sampled(lines: Callable[[], Iterable[bytes]], num: int, seed: int) -> Iterator[bytes]:
    """`num` of the lines, chosen at random by `seed`, in their order: those that `batchfile sample` writes. The others
    are blank, so that lines keep their numbers. `lines` is called twice.
    """
    total = sum(1 for _ in iter_lines(lines()))
    chosen = drawn(total, num, seed)
    following, at = next(chosen, None), 1
    for number, line in enumerate(iter_lines(lines())):
        if number == following:
            yield b"\n" * (line.row - at) + (line.head if line.data is None else line.data) + b"\n"
            following, at = next(chosen, None), line.row + 1


@contextmanager
def _stream_of(source: Source, on_bytes: OnBytes) -> Iterator[BinaryIO]:
    """Its own bytes, from the first one."""
    if source.path is not None:
        with open(source.path, "rb", buffering=0) as file:
            yield cast(BinaryIO, _Counted(cast(BinaryIO, file), on_bytes))
    elif source.remote is not None:
        yield cast(BinaryIO, _Counted(ChunkReader(source.remote.chunks()), on_bytes))
    else:
        yield cast(BinaryIO, _Counted(sys.stdin.buffer, on_bytes, source.head))


@contextmanager
def on_disk(source: Source) -> Iterator[str]:
    """The path of the file, or of a temporary copy of what is at an address or on stdin."""
    if source.path is not None:
        yield source.path
        return
    with tempfile.NamedTemporaryFile(prefix="batchfile-") as file:
        with _stream_of(source, lambda num_bytes: None) as stream:
            shutil.copyfileobj(stream, file, CHUNK_BYTES)
        file.flush()
        yield file.name


@contextmanager
def repeatable(source: Source) -> Iterator[Source]:
    """The same source, as a file that can be read again and again without a download."""
    with on_disk(source) as path:
        status = os.stat(path)
        stamp = source.stamp if source.path is not None else stamp_of(status)
        yield replace(source, path=path, stamp=stamp, size=status.st_size, remote=None, head=b"")


def first_requests(chunks: Iterable[bytes], num: int) -> Iterator[bytes]:
    """The bytes up to the end of the `num`-th line that is not blank; reads no further than its chunk."""
    read: deque[bytes] = deque()
    sent = 0

    def remembered() -> Iterator[bytes]:
        for chunk in chunks:
            read.append(chunk)
            yield chunk

    for line in iter_lines(remembered()):
        while read and sent + len(read[0]) <= line.end:
            sent += len(read[0])
            yield read.popleft()
        num -= 1
        if num == 0:
            if read and line.end > sent:
                yield read[0][: line.end - sent]
            return
    yield from read


def _inspect_stdin(stream: BinaryIO) -> Source:
    if stream.isatty():
        raise InvalidFile("-: stdin is a terminal; pipe a file of requests into it")
    head = stream.read(KIND_BYTES)
    if not head:
        raise InvalidFile("-: stdin is empty; it needs at least one request line")
    return _detected("stdin", head, name="stdin", path=None, head=head)


class _Counted:
    """A read-only file object that reports how much was read. `head` was already read, and is returned first."""

    def __init__(self, stream: BinaryIO | ChunkReader, on_bytes: OnBytes, head: bytes = b"") -> None:
        self._stream = stream
        self._on_bytes = on_bytes
        self._head = head

    def read(self, size: int = -1) -> bytes:
        if self._head:
            data = self._head if size < 0 else self._head[:size]
            self._head = self._head[len(data) :]
        else:
            data = self._stream.read(size)
        self._on_bytes(len(data))
        return data

    def close(self) -> None:
        """Does nothing: the stream is closed where it was opened."""
