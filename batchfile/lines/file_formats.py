"""The file formats that become JSONL: gzip, Zstandard, Parquet; told apart by their first bytes.

Streams in bounded memory. What is damaged is an InvalidFile that says where. Knows no store and no request.
"""

from collections.abc import Iterator
from typing import BinaryIO, Literal

from batchfile.errors import InvalidFile
from batchfile.lines.unpack import Unpacker

Format = Literal["jsonl", "gzip", "zstd", "parquet"]

CHUNK_BYTES = 1024 * 1024
HEAD_BYTES = 4
_MAGIC: tuple[tuple[bytes, Format], ...] = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"PAR1", "parquet"),
)
_ENDINGS: tuple[tuple[str, Format], ...] = ((".gz", "gzip"), (".zst", "zstd"), (".parquet", "parquet"))
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_OTHERS = ((b"PK\x03\x04", "a zip archive (or an .xlsx)"), (b"BZh", "bzip2 data"), (b"\xfd7zX", "xz data"))


def detect(name: str, head: bytes) -> Format:
    """The format of a file that begins with `head`. Raises: InvalidFile where its name says otherwise."""
    if head.startswith(_UTF16):
        raise InvalidFile(f"{name}: is UTF-16 text; save it as UTF-8")
    for magic, what in _OTHERS:
        if head.startswith(magic):
            raise InvalidFile(f"{name}: is {what}; unpack it (.gz and .zst can be read as they are)")
    found: Format = next((kind for magic, kind in _MAGIC if head.startswith(magic)), "jsonl")
    for ending, kind in _ENDINGS:
        if name.endswith(ending) and found != kind:
            raise InvalidFile(f"{name}: is named {ending} and is no {kind} data; the file is damaged or misnamed")
    return found


def open_lines(path: str | None, kind: Format, stream: BinaryIO | None) -> Iterator[bytes]:
    """The JSONL in the file `path`, or in `stream`, as chunks. `path` then only names it; None means stdin.

    Parquet is read from a stream that can seek, by a process of its own. Raises: InvalidFile, ConverterKilled, and
    whatever the stream raises.
    """
    if kind == "parquet":
        if path is None:
            raise InvalidFile("stdin: Parquet can not be read from a pipe; name the file")
        return _converted(path, kind, stream)
    return open_text(path, kind, stream)


def _converted(path: str, kind: Format, stream: BinaryIO | None) -> Iterator[bytes]:
    from batchfile.lines.converter import convert

    if stream is not None:
        yield from convert(path, kind, stream)
        return
    with open(path, "rb") as file:
        yield from convert(path, kind, file)


def file_chunks(path: str) -> Iterator[bytes]:
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def open_text(path: str | None, kind: Literal["jsonl", "gzip", "zstd"], stream: BinaryIO | None) -> Iterator[bytes]:
    """As `open_lines`, of any format but Parquet, and always in this process."""
    name = path or "stdin"
    source = open(name, "rb") if stream is None else stream  # noqa: SIM115 closed below
    try:
        if kind == "jsonl":
            while chunk := source.read(CHUNK_BYTES):
                yield chunk
            return
        unpacker = Unpacker(kind, name, "copy the file again")
        while chunk := source.read(CHUNK_BYTES):
            yield from unpacker.unpack(chunk)
        unpacker.finish()
    finally:
        source.close()
