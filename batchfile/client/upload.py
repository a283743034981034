"""Reads the file, stdin or object to submit, as JSONL in chunks. Knows no batch and no service."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO, cast
from urllib.parse import unquote, urlsplit

from batchfile.errors import InvalidFile, StoreError, StoreUnavailable
from batchfile.lines.file_formats import (
    CHUNK_BYTES,
    HEAD_BYTES,
    ChunkReader,
    FileFormat,
    detect,
    open_lines,
    plain_head,
)
from batchfile.lines.kinds import KIND_BYTES, Kind, refusal
from batchfile.lines.kinds import detect as detect_kind
from batchfile.lines.split_document import elements
from batchfile.local.inputs import Counted, check_untouched, inspect
from batchfile.store.open import open_store

OnBytes = Callable[[int], None]

PACKED_ABOUT = 4  # typical compression ratio of prompts in JSON; it affects only the size of the shards


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """Requests that can be read from the start, more than once where `is_repeatable`.

    `size`: of the stored file, in bytes; None: unknown. It unpacks to about `unpacked_size`.
    `chunks(on_bytes)`: its JSONL; `on_bytes` is called with the size of each chunk that was read.
    Raises: InvalidFile where the file is damaged, or has changed meanwhile.
    """

    name: str
    size: int | None
    format: FileFormat
    chunks: Callable[[OnBytes], Iterator[bytes]]
    is_repeatable: bool = True

    @property
    def unpacked_size(self) -> int:
        return (self.size or 0) * (1 if self.format == "jsonl" else PACKED_ABOUT)


def open_upload(name: str) -> Upload:
    """Open a path, `-` or an s3:// URL. Raises: InvalidFile where it cannot be used."""
    return _of_object(name) if name.startswith("s3://") else _of_file(name)


class LastByte:
    """Remembers the last byte of a file while it is read."""

    value = b""

    def watch(self, upload: Upload) -> Upload:
        def chunks(on_bytes: OnBytes) -> Iterator[bytes]:
            for chunk in upload.chunks(on_bytes):
                self.value = chunk[-1:] or self.value
                yield chunk

        return replace(upload, chunks=chunks)


@contextmanager
def repeatable(upload: Upload) -> Iterator[Upload]:
    """The same upload, written to disk if it can be read only once."""
    if upload.is_repeatable:
        yield upload
        return
    with tempfile.TemporaryDirectory(prefix="batchfile-") as folder:
        path = os.path.join(folder, "requests.jsonl")
        with open(path, "wb") as file:
            for chunk in upload.chunks(lambda num_bytes: None):
                file.write(chunk)
        yield _of_file(path)


def _of_file(name: str) -> Upload:
    source = inspect(name)
    _check_kind(source.kind, name)
    if source.path is None:
        if source.format == "parquet":
            raise InvalidFile("stdin: Parquet cannot be read from a pipe; use the path of the file")

        def from_stdin(on_bytes: OnBytes) -> Iterator[bytes]:
            stream = Counted(sys.stdin.buffer, on_bytes, source.head)
            lines = open_lines(None, source.format, cast(BinaryIO, stream))
            return elements(lines, "stdin") if source.kind.is_array else lines

        return Upload(name="stdin", size=None, format=source.format, chunks=from_stdin, is_repeatable=False)
    path = source.path

    def from_file(on_bytes: OnBytes) -> Iterator[bytes]:
        lines = _file_lines(path, source.format, on_bytes)
        yield from elements(lines, name) if source.kind.is_array else lines
        check_untouched(source)

    return Upload(name=name, size=os.path.getsize(path), format=source.format, chunks=from_file)


def _of_object(url: str) -> Upload:
    parts = urlsplit(url)
    key = unquote(parts.path).lstrip("/")
    if not key or key.endswith("/"):
        raise InvalidFile(f"{url}: is not the URL of an object; use s3://BUCKET/PATH/NAME.jsonl")
    store = open_store(f"s3://{parts.netloc}" + (f"?{parts.query}" if parts.query else ""), prove=False)
    try:
        entry = store.head(key)
        if entry is None:
            store.get(key)  # unlike a HEAD, this reports a missing bucket
            raise InvalidFile(f"{url}: no such object")
    except StoreUnavailable:
        raise
    except StoreError as error:
        raise InvalidFile(f"{url}: {error}") from error
    if entry.size == 0:
        raise InvalidFile(f"{url}: is empty; it needs at least one request line")
    head = b"".join(store.stream(key, 0, min(KIND_BYTES, entry.size)))
    kind = detect(key, head[:HEAD_BYTES])
    content = detect_kind(key, plain_head(key, kind, head, KIND_BYTES))
    _check_kind(content, url)

    def from_object(on_bytes: OnBytes) -> Iterator[bytes]:
        stream = Counted(ChunkReader(store.stream(key, match=entry.etag)), on_bytes)
        if kind != "parquet":
            lines = open_lines(key, kind, cast(BinaryIO, stream))
            yield from elements(lines, url) if content.is_array else lines
            return
        with tempfile.NamedTemporaryFile(prefix="batchfile-", suffix=".parquet") as file:  # Parquet needs seeking
            shutil.copyfileobj(stream, file, CHUNK_BYTES)
            file.flush()
            yield from open_lines(file.name, kind, None)

    return Upload(name=url, size=entry.size, format=kind, chunks=from_object)


def _check_kind(kind: Kind, name: str) -> None:
    """Raises: InvalidFile for a file without requests. Parquet is judged by its columns, when it is read."""
    if kind.content != "requests" and kind.layout != "parquet":
        raise InvalidFile(refusal(kind, name))


def _file_lines(path: str, kind: FileFormat, on_bytes: OnBytes) -> Iterator[bytes]:
    if kind == "parquet":
        yield from open_lines(path, kind, None)
        on_bytes(os.path.getsize(path))
        return
    with open(path, "rb", buffering=0) as file:
        yield from open_lines(path, kind, cast(BinaryIO, Counted(cast(BinaryIO, file), on_bytes)))
