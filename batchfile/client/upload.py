"""Reads the file, stdin or address to submit, as JSONL in chunks, and writes rows back with their answers."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from batchfile.lines.file_formats import FileFormat, file_chunks
from batchfile.lines.framing import iter_lines
from batchfile.lines.result import RESULT_BYTES_MAX
from batchfile.local.inputs import OnBytes, inspect, requests_of
from batchfile.local.options import STDOUT, RunOptions
from batchfile.local.outputs import ERRORS_ENDING
from batchfile.local.tables import prepared, with_contents
from batchfile.rows.table import Table

if TYPE_CHECKING:
    from batchfile.client.batch import Batch

PACKED_ABOUT = 4  # typical compression ratio of prompts in JSON; it affects only the size of the shards


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """Requests that can be read from the start, more than once where `is_repeatable`.

    `size`: of the stored file, in bytes; None: unknown. It unpacks to about `unpacked_size`.
    `chunks(on_bytes)`: its JSONL; `on_bytes` is called with the size of each chunk that was read. `table`: how rows or
    text became these requests; None if the input has requests.
    Raises: InvalidFile where the file is damaged, or has changed meanwhile.
    """

    name: str
    size: int | None
    format: FileFormat
    chunks: Callable[[OnBytes], Iterator[bytes]]
    is_repeatable: bool = True
    table: Table | None = None

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
def repeatable(upload: Upload, *, is_spooled: bool = False) -> Iterator[Upload]:
    """The same upload, written to disk if it can be read only once, or if `is_spooled`: then its input may change."""
    if upload.is_repeatable and not is_spooled:
        yield upload
        return
    with tempfile.NamedTemporaryFile(prefix="batchfile-") as file:
        for chunk in upload.chunks(lambda num_bytes: None):
            file.write(chunk)
        file.flush()

        def chunks(on_bytes: OnBytes) -> Iterator[bytes]:
            for chunk in file_chunks(file.name):
                on_bytes(len(chunk))
                yield chunk

        yield replace(upload, size=file.tell(), format="jsonl", chunks=chunks, is_repeatable=True)


def open_upload(name: str, options: RunOptions | None = None) -> Upload:
    """Open a path, an address, or `-` (stdin). `options`: how rows and text become requests, and how many of them.

    Raises: InvalidFile where it cannot be used; SettingsError for options that do not fit it; StoreUnavailable.
    """
    options = with_contents(options or RunOptions(input=name))
    source = prepared(inspect(name), options)
    is_part = options.limit is not None or options.sample is not None
    return Upload(
        name=source.shown,
        size=None if is_part else source.size or None,
        format=source.format,
        chunks=lambda on_bytes: requests_of(source, on_bytes),
        is_repeatable=source.is_repeatable,
        table=source.table,
    )


def save_rows(batch: "Batch", upload: Upload, output: str) -> None:
    """Write the rows of `upload` with their answers to the path `output`, or to stdout (-), and the requests that did
    not succeed next to it. `batch`: was made of the upload, and has ended. Raises: as `Batch.save`; OSError.
    """
    assert upload.table is not None
    is_stdout = output == STDOUT
    with tempfile.TemporaryDirectory(
        prefix=".batchfile-", dir=None if is_stdout else os.path.dirname(output)
    ) as folder:
        found, made = os.path.join(folder, "results.jsonl"), os.path.join(folder, "rows")
        batch.save(found, format="native")

        def results() -> Iterator[bytes]:
            return (line.data or b"" for line in iter_lines(file_chunks(found), line_bytes_max=RESULT_BYTES_MAX))

        with nullcontext(sys.stdout.buffer) if is_stdout else open(made, "wb") as file:
            upload.table.answered.write(
                lambda: upload.chunks(lambda num_bytes: None), results, file, None if is_stdout else output
            )
        if is_stdout:
            return
        os.replace(made, output)
        with suppress(FileNotFoundError):
            os.replace(found + ERRORS_ENDING, output + ERRORS_ENDING)
