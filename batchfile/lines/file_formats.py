"""Reads gzip, Zstandard and Parquet as JSONL, in files and in HTTP bodies; detects the format by the first bytes.

All decompression happens here, streaming and in bounded memory. CPU time is bounded by the sizes of input and output:
nearly empty members are rejected, because each takes as much time as a thousand bytes. Damaged data raises InvalidFile
with the position.
"""

import json
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, BinaryIO, Literal

from batchfile.errors import InvalidFile

if sys.version_info >= (3, 14):
    from compression import zstd as zstd  # noqa: PLC0414 for others too
else:
    from backports import zstd as zstd  # noqa: PLC0414

Packing = Literal["gzip", "zstd"]
FileFormat = Literal["jsonl", "gzip", "zstd", "parquet"]
# What to read from Parquet instead of its requests: its rows, or the names of its columns.
Conversion = FileFormat | Literal["parquet-rows", "parquet-columns"]

CHUNK_BYTES = 1024 * 1024
PIECE_BYTES = 1024 * 1024  # decompressed at a time, at most
FEED_BYTES = 16 * 1024  # given to zlib at a time: it copies unused input, once per member
MEMBERS_FREE = 10_000  # gzip members or Zstandard frames of any size
MEMBER_BYTES_MIN = 1024  # average decompressed size required of a stream with more members
HEAD_BYTES = 4  # enough to detect the format
ZSTD_WINDOW_LOG_MAX = 23  # 8 MiB, as RFC 8878 recommends; enough for `zstd -1` to `-19`

PARQUET_HINT = "give the file to `batchfile submit`, or put it into the inbox"
_ENDINGS: tuple[tuple[str, FileFormat], ...] = ((".gz", "gzip"), (".zst", "zstd"), (".parquet", "parquet"))
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_OTHERS = ((b"PK\x03\x04", "a zip archive (or an .xlsx)"), (b"BZh", "bzip2 data"), (b"\xfd7zX", "xz data"))
_FOREIGN = (
    (b"%PDF", "a PDF"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\xd0\xcf\x11\xe0", "an .xls or .doc file"),
)
_DAMAGE = (zlib.error, zstd.ZstdError)


_MAGIC: dict[FileFormat, bytes] = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd", "parquet": b"PAR1"}
SKIPPABLE = b"\x2a\x4d\x18"  # how a skippable Zstandard frame begins, after its first byte
_NEW: dict[Packing, Callable[[], Any]] = {
    "gzip": partial(zlib.decompressobj, 31),
    "zstd": partial(zstd.ZstdDecompressor, options={zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG_MAX}),
}


class Unpacker:
    """Decompresses one stream of any number of members (gzip) or frames (Zstandard).

    `name` and `hint` are for messages: what the data is, and what to do if it is damaged.
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
        """Decompresses `data`, in pieces of at most PIECE_BYTES. Raises: InvalidFile."""
        self._head += data[: HEAD_BYTES - len(self._head)]
        for at in range(0, len(data), FEED_BYTES):
            yield from self._feed(data[at : at + FEED_BYTES])

    def finish(self) -> None:
        """Call at the end of the input. Raises: InvalidFile if it is truncated."""
        if self._is_begun:
            raise self._invalid("is truncated")

    def _feed(self, data: bytes) -> Iterator[bytes]:
        while True:
            if self._num_members and not self._is_begun and self._kind == "gzip":
                data = data.lstrip(b"\0")  # padding after a member, which gzip's own tools accept
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
        """Whether the member needs more input to produce more output."""
        return bool(self._member.needs_input) if self._kind == "zstd" else len(piece) < PIECE_BYTES

    def _next_member(self) -> None:
        self._num_members += 1
        if self._num_members > MEMBERS_FREE and self._size < self._num_members * MEMBER_BYTES_MIN:
            members = "members" if self._kind == "gzip" else "frames"
            raise InvalidFile(
                f"{self._name}: the {self._kind} data has over {MEMBERS_FREE:,} {members} that are nearly empty; "
                "compress the text as one stream"
            )
        self._member, self._is_begun = _NEW[self._kind](), False

    def _invalid(self, what: str) -> InvalidFile:
        if not self._head.startswith(_MAGIC[self._kind]) and self._head[1:] != SKIPPABLE:
            return InvalidFile(f"{self._name}: is not {self._kind} data; {self._hint}")
        return InvalidFile(
            f"{self._name}: the {self._kind} data {what} after {self._size:,} bytes of text; {self._hint}"
        )


class ChunkReader:
    """A minimal file object that reads from chunks."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = b""

    def read(self, size: int = -1) -> bytes:
        self._left = self._left or next(self._chunks, b"")
        data = self._left if size < 0 else self._left[:size]
        self._left = self._left[len(data) :]
        return data

    def close(self) -> None:
        self._chunks = iter(())


def detect(name: str, head: bytes) -> FileFormat:
    """The format of a file that begins with `head`. Raises: InvalidFile if its name says otherwise."""
    found = _format_of(name, head)
    for ending, kind in _ENDINGS:
        if name.lower().endswith(ending) and found != kind:
            raise InvalidFile(f"{name}: is named {ending} but is not {kind} data; the file is damaged or misnamed")
    return found


def _format_of(name: str, head: bytes) -> FileFormat:
    """Raises: InvalidFile for an unsupported format."""
    if head.startswith(_UTF16) or _has_nul_bytes_between(head):
        raise InvalidFile(f"{name}: is UTF-16 text; save it as UTF-8")
    for magic, what in _OTHERS:
        if head.startswith(magic):
            raise InvalidFile(f"{name}: is {what}; decompress it (.gz and .zst can be read as they are)")
    for magic, what in _FOREIGN:
        if head.startswith(magic):
            raise InvalidFile(f"{name}: is {what}; save its requests or rows as text, such as JSONL or CSV")
    return next((kind for kind, magic in _MAGIC.items() if head.startswith(magic)), "jsonl")


def _has_nul_bytes_between(head: bytes) -> bool:
    """Whether it looks like UTF-16 without a byte order mark, of either byte order."""
    return [n for n, byte in enumerate(head[:HEAD_BYTES]) if byte == 0] in ([0, 2], [1, 3])


class PlainText:
    """Turns incoming data into text, decompressing it if its first bytes say gzip or Zstandard.

    `name` and `hint` are for messages: what the data is, and what to do if it is damaged. `packing`: if already known.
    Data that is compressed twice is rejected, because the intermediate data could have any size.
    """

    def __init__(self, name: str, hint: str, *, packing: Packing | None = None, is_unpacked: bool = False) -> None:
        self._name = name
        self._hint = hint
        self._is_unpacked = is_unpacked
        self._head = b""
        self._is_detected = False
        self._unpacker: Unpacker | None = None
        self._inner: PlainText | None = None
        if packing is not None:
            self._unpack(packing)

    def read(self, data: bytes) -> Iterator[bytes]:
        """The text in `data`. Raises: InvalidFile if it is not text, or damaged."""
        if not self._is_detected:
            data = self._head + data
            if len(data) < HEAD_BYTES:
                self._head = data
                return
            self._head = b""
            self._detect(data)
        if self._unpacker is None or self._inner is None:
            yield data
            return
        for piece in self._unpacker.unpack(data):
            yield from self._inner.read(piece)

    @property
    def held(self) -> bytes:
        """Text that `read` has not returned yet: the first bytes, while they are too few to detect a format."""
        return self._head if self._inner is None else self._inner.held

    def finish(self) -> Iterator[bytes]:
        """Call at the end of the input; the rest of the text. Raises: as `read`."""
        if self._head:
            self._detect(self._head)
            yield self._head
        if self._unpacker is not None and self._inner is not None:
            self._unpacker.finish()
            yield from self._inner.finish()

    def _detect(self, head: bytes) -> None:
        kind = _format_of(self._name, head[:HEAD_BYTES])
        if kind == "parquet":
            raise InvalidFile(f"{self._name}: is Parquet data, which can only be read from a file; {PARQUET_HINT}")
        self._is_detected = True
        if kind == "jsonl":
            return
        if self._is_unpacked:
            raise InvalidFile(f"{self._name}: is compressed twice, with {kind} data inside; compress it once")
        self._unpack(kind)

    def _unpack(self, kind: Packing) -> None:
        self._is_detected = True
        self._unpacker = Unpacker(kind, self._name, self._hint)
        self._inner = PlainText(self._name, self._hint, is_unpacked=True)


def open_lines(
    path: str | None, kind: FileFormat, stream: BinaryIO | None, *, as_rows: bool = False
) -> Iterator[bytes]:
    """The file `path`, or `stream`, as chunks of plain bytes. With a stream, `path` is only for messages; None means
    stdin. Parquet becomes JSONL of its requests, or `as_rows` of its rows.

    Parquet needs a seekable stream and is read by a child process. Raises: InvalidFile, ConverterKilled, and any error
    of the stream.
    """
    if kind == "parquet":
        if path is None:
            raise InvalidFile("stdin: Parquet cannot be read from a pipe; name the file")
        return _converted(path, "parquet-rows" if as_rows else kind, stream)
    return open_text(path, kind, stream)


def parquet_columns(path: str) -> tuple[tuple[str, ...], str]:
    """The names of the columns and their types (an Arrow schema as base64), read by a child process.

    Raises: InvalidFile, ConverterKilled, SettingsError.
    """
    names, types = json.loads(b"".join(_converted(path, "parquet-columns", None)))
    return tuple(names), types


def _converted(path: str, kind: Conversion, stream: BinaryIO | None) -> Iterator[bytes]:
    from batchfile.lines.converter import convert

    if stream is not None:
        yield from convert(path, kind, stream)
        return
    with open(path, "rb") as file:
        yield from convert(path, kind, file)


def plain_head(name: str, kind: FileFormat, data: bytes, size: int) -> bytes:
    """The first `size` bytes of a file that begins with `data`, decompressed; fewer if `data` is too short.

    Raises: InvalidFile if it is damaged.
    """
    if kind == "parquet":
        return data
    head = b""
    text = PlainText(name, "copy the file again", packing=None if kind == "jsonl" else kind)
    for piece in text.read(data):
        head += piece
        if len(head) >= size:
            break
    return (head + text.held)[:size]


def file_chunks(path: str) -> Iterator[bytes]:
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def open_text(path: str | None, kind: Literal["jsonl", "gzip", "zstd"], stream: BinaryIO | None) -> Iterator[bytes]:
    """Like `open_lines`, for all formats except Parquet, and always in this process."""
    name = path or "stdin"
    source = open(name, "rb") if stream is None else stream  # noqa: SIM115 closed below
    try:
        text = PlainText(name, "copy the file again", packing=None if kind == "jsonl" else kind)
        while chunk := source.read(CHUNK_BYTES):
            yield from text.read(chunk)
        yield from text.finish()
    finally:
        source.close()
