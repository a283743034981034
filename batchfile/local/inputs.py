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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, cast

from batchfile.errors import InvalidFile
from batchfile.lines import records
from batchfile.lines.file_formats import (
    CHUNK_BYTES,
    HEAD_BYTES,
    ChunkReader,
    FileFormat,
    detect,
    open_lines,
    plain_head,
)
from batchfile.lines.framing import BOM, NO_REQUEST
from batchfile.lines.kinds import KIND_BYTES, FileKind
from batchfile.lines.kinds import detect as detect_kind
from batchfile.lines.split_document import elements
from batchfile.local.options import STDIN
from batchfile.local.remote_inputs import RemoteFile, changed, is_url, open_remote, path_of
from batchfile.rows.table import Table
from batchfile.store.base import Store

OnBytes = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An inspected input. `name`: of a file, its absolute path; `shown`: for messages, its path as given. `path` None:
    it is at an address (`remote`), or stdin.

    `stamp`: stays equal while the file is not modified (inode, size, mtime, ctime; or of a server); may be empty.
    `size` in bytes; 0: unknown. `copy`: the path of a copy on disk. `table`: how its rows become requests; None if it
    has requests. Of all requests, only the first `limit` are wanted, or a `sample`: so many, chosen by a seed.
    """

    name: str
    given: str = ""
    path: str | None
    format: FileFormat
    kind: FileKind
    table: Table | None = None
    stamp: str = ""
    size: int = 0
    head: bytes = b""
    limit: int | None = None
    sample: tuple[int, int] | None = None
    remote: RemoteFile | None = None
    copy: str | None = None

    @property
    def shown(self) -> str:
        return self.given or self.name

    @property
    def is_plain(self) -> bool:
        """Are its own bytes the JSONL of its requests?"""
        is_whole = self.limit is None and self.sample is None
        return is_whole and self.table is None and self.format == "jsonl" and self.kind.layout == "jsonl"

    @property
    def id_name(self) -> str:
        """What messages call the ids of its requests."""
        return "custom_id" if self.table is None else self.table.prompt.id_name(self.kind.columns)

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
        raise InvalidFile(
            f"{path}: is a directory; use a file in it, or for `batchfile run` a folder as output: -o out/"
        )
    if not stat.S_ISREG(status.st_mode):
        raise InvalidFile(f"{path}: is not a regular file; pipe it to stdin and use - as the input")
    if status.st_size == 0:
        raise InvalidFile(f"{path}: is empty; it needs at least one request line")
    try:
        with open(absolute, "rb") as file:
            head = file.read(KIND_BYTES)
    except OSError as error:
        raise InvalidFile(f"{path}: cannot be read: {error.strerror}; check its permissions") from None
    return _detected(path, head, name=absolute, given=path, path=absolute, stamp=stamp_of(status), size=status.st_size)


@contextmanager
def opened(path: str) -> Iterator[Source]:
    """As `inspect`. Parquet at an address is downloaded once, and kept on disk until the end: its columns are read
    first. Raises: as `inspect`.
    """
    source = inspect(path)
    if source.remote is None or source.format != "parquet":
        yield source
        return
    with on_disk(source) as copy:
        yield replace(source, copy=copy)


def _detected(name: str, head: bytes, /, **more: Any) -> Source:
    found = detect(name, head[:HEAD_BYTES])
    plain = plain_head(name, found, head, KIND_BYTES)
    if found == "jsonl" and len(plain) < KIND_BYTES and not plain.removeprefix(BOM).strip(b"\r\n\t \0"):
        raise InvalidFile(f"{name}: {NO_REQUEST}")
    return Source(format=found, kind=detect_kind(name, plain), **more)


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
        raise changed(source.shown)


def is_added_to(source: Source) -> bool:
    """Is the file longer than when it was inspected?"""
    try:
        return source.path is not None and os.stat(source.path).st_size > source.size
    except OSError:
        return False


def bring_in(store: Store, source: Source, key: str) -> bool:
    """Store the requests of `source` as the object `key`. True: the object refers to the file itself.

    Raises: InvalidFile (damaged data, a missing column); OSError where the disk is full.
    """
    if source.is_plain and source.path is not None and store.link(key, source.path) is not None:
        return True
    with store.writer(key, is_new=True) as writer:
        for chunk in requests_of(source):
            writer.write(chunk)
        check_untouched(source)
        writer.commit()
    return False


def requests_of(source: Source, on_bytes: OnBytes = lambda num_bytes: None) -> Iterator[bytes]:
    """The JSONL of the requests that are wanted. Raises: InvalidFile.

    A sample is the lines that `batchfile sample` writes. The others are blank, so that lines keep their numbers.
    """
    if source.sample is not None:
        num, seed = source.sample
        whole = replace(source, sample=None)
        total = records.count(records.pieces(requests_of(whole)))
        return records.picked(records.pieces(requests_of(whole)), records.drawn(total, num, seed), instead=b"\n")
    lines = lines_of(source, on_bytes)
    if source.table is not None:
        lines = source.table.requests(lines, source.shown)
    return lines if source.limit is None else first_requests(lines, source.limit)


def lines_of(source: Source, on_bytes: OnBytes = lambda num_bytes: None) -> Iterator[bytes]:
    """The text of a source before rows become requests, in chunks: unpacked, and JSON arrays and Parquet as JSONL.

    `on_bytes`: gets the size of each chunk that was read of the source. Raises: InvalidFile where it is damaged, or has
    changed since it was inspected.
    """
    chunks = _unpacked(source, on_bytes)
    yield from elements(chunks, source.shown) if source.kind.is_array else chunks
    check_untouched(source)


def _unpacked(source: Source, on_bytes: OnBytes) -> Iterator[bytes]:
    if source.format != "parquet":
        with _stream_of(source, on_bytes) as stream:
            yield from open_lines(source.shown, source.format, stream)
        return
    with on_disk(source) as path, open(path, "rb") as file:
        yield from open_lines(source.shown, source.format, file, as_rows=source.kind.content == "rows")
    on_bytes(source.size)


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
    path = source.path or source.copy
    if path is not None:
        yield path
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
    for piece in records.pieces(chunks):
        yield piece.data
        if piece.record == num - 1 and piece.data.endswith(b"\n"):
            return


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
