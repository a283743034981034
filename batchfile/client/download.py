"""A finished file onto this disk, continued where an earlier attempt stopped; results in the dialect of their input."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import BinaryIO

from batchfile.client.base import BatchStatus, Download, Remote, ResultFormat
from batchfile.errors import BatchfileError, SettingsError
from batchfile.lines.file_formats import file_chunks
from batchfile.lines.formats.openai_results import openai_file
from batchfile.lines.framing import iter_lines
from batchfile.lines.result import RESULT_BYTES_MAX
from batchfile.local.outputs import ERRORS_ENDING, PARQUET_ENDING

OnBytes = Callable[[int], None]


def fetch(download: Download, path: str, on_bytes: OnBytes) -> None:
    """Make `path` hold the file: whole and checked, or as it was. What arrived is kept beside it for the next attempt.

    Raises: BatchfileError where its digest is not the one that was promised; OSError where the disk is full.
    """
    os.replace(_arrived(download, path, on_bytes), path)


def save_results(
    remote: Remote,
    batch: BatchStatus,
    results: Download,
    path: str,
    on_bytes: OnBytes,
    form: ResultFormat | None = None,
) -> None:
    """The results at `path`, and the input lines that did not succeed next to it, if any.

    `form` None: Parquet by the name of `path`, else as the batch's input was.
    """
    form = form or ("parquet" if path.endswith(PARQUET_ENDING) else batch.dialect)
    if form == "native":
        fetch(results, path, on_bytes)
    else:
        arrived = _arrived(results, path, on_bytes)
        made = _beside(path, "unfinished")
        if form == "parquet":
            from batchfile.lines.parquet import write_results

            lines = iter_lines(file_chunks(arrived), line_bytes_max=RESULT_BYTES_MAX)
            write_results((line.data or b"" for line in lines), made)
        else:
            with open(made, "wb") as file:
                for chunk in in_dialect(batch, file_chunks(arrived), form):
                    file.write(chunk)
        os.replace(made, path)
        os.unlink(arrived)
    errors = remote.errors(batch)
    if errors is not None and errors.size:
        fetch(errors, path + ERRORS_ENDING, on_bytes)
    else:
        with suppress(FileNotFoundError):
            os.unlink(path + ERRORS_ENDING)


def in_dialect(batch: BatchStatus, chunks: Iterator[bytes], form: ResultFormat | None = None) -> Iterator[bytes]:
    """Native result lines in this format; None: as the batch's input was. Raises: SettingsError for Parquet."""
    form = form or batch.dialect
    if form == "parquet":
        raise SettingsError("Parquet is written to a path, not to an open file")
    if form == "native":
        return chunks
    return openai_file(chunks, batch_id=batch.batch_id, created=int(batch.created_at), is_output=None)


def _arrived(download: Download, path: str, on_bytes: OnBytes) -> str:
    """The path of the whole file, checked, under its name while it is on its way."""
    partial = _beside(path, f"{download.sha256[:12]}.partial")
    if os.path.exists(partial) and os.path.getsize(partial) > download.size:
        os.unlink(partial)
    digest = hashlib.sha256()
    with open(partial, "ab+") as file:
        size = _take_up(file, digest)
        on_bytes(size)
        for chunk in download.read(size) if size < download.size else ():
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
            on_bytes(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    if size != download.size or not digest.hexdigest().startswith(download.sha256[:32]):
        os.unlink(partial)
        raise BatchfileError(f"{path}: what arrived is not what was sent; run the same command again")
    return partial


def _take_up(file: BinaryIO, digest: "hashlib._Hash") -> int:
    """How much is there already."""
    file.seek(0)
    size = 0
    while chunk := file.read(1024 * 1024):
        digest.update(chunk)
        size += len(chunk)
    return size


def _beside(path: str, kind: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.{kind}")
