"""Reads the file, stdin or address to submit, as JSONL in chunks. Knows no batch and no service."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from batchfile.errors import InvalidFile
from batchfile.lines.file_formats import FileFormat
from batchfile.lines.kinds import Kind, refusal
from batchfile.local.inputs import OnBytes, inspect, requests_of
from batchfile.local.options import RunOptions
from batchfile.local.tables import kind_of, prepared

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
        yield open_upload(path)


def open_upload(name: str, rows: RunOptions | None = None) -> Upload:
    """Open a path, an address, or `-` (stdin). `rows`: with these options, rows and text become requests too.

    Raises: InvalidFile where it cannot be used; SettingsError for options that do not fit it; StoreUnavailable.
    """
    source = inspect(name)
    if rows is not None:
        source = prepared(source, rows)
    else:
        kind = source.kind if source.path is None else kind_of(source, is_table=False)
        _check_kind(kind, source.name if source.remote is not None else name)
        source = replace(source, kind=replace(source.kind, content="requests"))
    return Upload(
        name=source.name if source.path is None else name,
        size=source.size or None,
        format=source.format,
        chunks=lambda on_bytes: requests_of(source, on_bytes=on_bytes),
        is_repeatable=source.is_repeatable,
    )


def _check_kind(kind: Kind, name: str) -> None:
    """Raises: InvalidFile for a file without requests. Parquet of unknown columns is judged when it is read."""
    is_unknown = kind.layout == "parquet" and (not kind.columns or kind.has_prompts)
    if not kind.is_ready and not is_unknown:
        raise InvalidFile(refusal(kind, name))
