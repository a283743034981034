"""Writes the files of a run: the results, the lines that failed, why they did, and the receipt, each atomically.

Only one process writes an output at a time, even with different stores. Knows no engine and no terminal.
"""

import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import BinaryIO

from batchfile.errors import OutputTaken, SettingsError, check_installed
from batchfile.inbox import documents
from batchfile.inbox.documents import FileFacts
from batchfile.ledger.base import Ledger
from batchfile.ledger.records import BatchRecord, FileRef
from batchfile.lines.formats.openai_results import openai_file
from batchfile.lines.framing import iter_lines
from batchfile.lines.kinds import ending_of
from batchfile.lines.result import RESULT_BYTES_MAX
from batchfile.local import past_runs
from batchfile.local.display import counted, from_here
from batchfile.local.inputs import file_digest
from batchfile.local.options import MERGED, REPLACES, TABLE
from batchfile.local.receipt import Receipt, make_receipt
from batchfile.rows.table import AnsweredTable, Table, decode_table
from batchfile.store.locks import close_in_children, is_locked, unlock

ERRORS_ENDING = ".errors.jsonl"
REASONS_ENDING = ".reasons.jsonl"
RECEIPT_ENDING = ".receipt.json"
ENDINGS = ("", ERRORS_ENDING, REASONS_ENDING, RECEIPT_ENDING)  # of the files of a run
PARQUET_ENDING = ".parquet"
# Endings of other formats than the ones that are written.
_OTHER_FORMATS = frozenset({".csv", ".tsv", ".xls", ".xlsx", ".arrow", ".feather", ".gz", ".zst", ".zip"})
_NOT_TABLES = _OTHER_FORMATS - {".csv", ".tsv"}

_FOLDER_LOCK = ".batchfile-run.lock"  # in a folder of outputs, while one run writes all of them
_LOCK_ATTEMPTS = 10  # each fails if a process removes its lock in between, or looks at the lock
_LOCK_PAUSE_S = 0.01  # before the next: `is_being_written` holds a lock for less
_FILE_NAME_BYTES_MAX = 255  # in most file systems

# File names have at most 255 bytes, and the files next to an output have longer names.
NAME_BYTES_MAX = 220


def check_output(output: str, input_path: str | None, table: Table | None = None) -> str:
    """The output's absolute path. `table`: what the answers are written to. Raises: SettingsError where it cannot be
    written.
    """
    path = check_place(output, input_path)
    check_format(output, table)
    return path


def check_format(output: str, table: Table | None) -> None:
    """Raises: SettingsError where results cannot be written in the format that the name says."""
    if table is None and Path(output).suffix.lower() in _OTHER_FORMATS:
        raise SettingsError(f"{output}: the format is not supported; use a name ending in .jsonl or .parquet")
    if table is not None and ending_of(output) in _NOT_TABLES:
        raise SettingsError(f"{output}: the format is not supported; use .csv, .tsv, .jsonl, .parquet or .txt")
    if output.endswith(PARQUET_ENDING):
        check_installed("pyarrow", extra="parquet", what=output)


def check_place(output: str, input_path: str | None) -> str:
    """The output's absolute path. Raises: SettingsError where it cannot be written, whatever its format."""
    path = os.path.realpath(output)
    try:
        encoded = os.path.basename(path).encode()
    except UnicodeEncodeError:
        raise SettingsError(f"{output!r}: is not a UTF-8 name; choose another output") from None
    if len(encoded) > NAME_BYTES_MAX:
        raise SettingsError(f"{output}: the name is longer than {NAME_BYTES_MAX} bytes; choose a shorter one")
    if os.path.isdir(path):
        raise SettingsError(
            f"{output}: is a directory; use a file in it: {os.path.join(output, 'results.jsonl')}, or {output}/ for a "
            "file with the name of the input"
        )
    if os.path.exists(path) and not os.path.isfile(path):
        raise SettingsError(f"{output}: is not a regular file; use `-o -` to write the results to stdout")
    for ending in ENDINGS:
        if os.path.exists(path + ending) and not os.path.isfile(path + ending):
            raise SettingsError(
                f"{output}{ending}: is not a regular file, so it cannot be written; choose another output"
            )
        if input_path is not None and os.path.exists(path + ending) and os.path.samefile(path + ending, input_path):
            raise SettingsError(f"{output}{ending}: is the input itself; choose another output")
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise SettingsError(f"{output}: the directory {folder} does not exist; create it first")
    try:
        # Permission bits are not enough (a read-only mount, root): only a write shows it.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SettingsError(f"{output}: {folder} is not writable: {error.strerror}") from None
    return path


def is_writable(path: str) -> bool:
    """Can results, or at least rows, be written in the format that the name says?"""
    return Path(path).suffix.lower() not in _NOT_TABLES


def export(
    ledger: Ledger,
    batch: BatchRecord,
    output: str,
    say: Callable[[str], None] = lambda text: None,
    *,
    gpu_hour: float | None = None,
) -> Receipt:
    """Write the files of an ended batch, the receipt last. Idempotent. `say`: tells of a file that was edited.
    `gpu_hour`: the price of a GPU, for the receipt.

    Raises: OSError where the disk is full (each file is then complete or unchanged); OutputTaken where another run has
    written there since this one started.
    """
    assert batch.results is not None
    assert batch.errors is not None
    old = check_not_taken(ledger, batch, output)
    if old is not None:
        edited = [
            facts.path for facts in (old.output, old.errors, old.reasons) if facts is not None and not is_there(facts)
        ]
        if not edited and old.batch_id == batch.batch_id:
            return old
        for path in edited:
            _keep(path, "was changed since it was written; the changed file", say)
        if old.merged and old.output.path not in edited and batch.metadata.get(MERGED) != old.output.sha256:
            merged = counted(old.merged, "merged result")
            _keep(old.output.path, f"has {merged} that this run does not have; it", say)
    if output.endswith(PARQUET_ENDING) and table_of(batch) is None:
        from batchfile.lines.parquet import write_results

        with replaced(output) as temporary:
            write_results(result_lines(ledger, batch), temporary)
    else:
        with replaced(output) as temporary, open(temporary, "wb") as file:
            write_results_to(ledger, batch, file, output)
    receipt = make_receipt(
        batch,
        facts_of(output, batch.total),
        _export_file(ledger, batch.errors, output + ERRORS_ENDING),
        _export_file(ledger, batch.reasons, output + REASONS_ENDING),
        gpu_hour,
    )
    with replaced(output + RECEIPT_ENDING) as temporary:
        Path(temporary).write_bytes(documents.encode(receipt))
    past_runs.keep(receipt)
    return receipt


def _export_file(ledger: Ledger, stored: FileRef | None, path: str) -> FileFacts | None:
    """Write a file of a batch, or remove that of an earlier run where it has no lines."""
    if stored is None or not stored.num_lines:
        with suppress(FileNotFoundError):
            os.unlink(path)
        return None
    with replaced(path) as temporary, open(temporary, "wb") as file:
        for chunk in ledger.store.stream(stored.key):
            file.write(chunk)
    return facts_of(path, stored.num_lines)


def check_not_taken(ledger: Ledger, batch: BatchRecord, output: str) -> Receipt | None:
    """The receipt at the output. Raises: OutputTaken where another run has written there since this one started."""
    old = read_receipt(output)
    if old is None or old.batch_id in {batch.batch_id, batch.metadata.get(REPLACES)}:
        return old
    raise OutputTaken(
        f"{output} was written by another run ({old.batch_id}) since this one started. The results of this one are "
        f"kept: `batchfile results {batch.batch_id} -o OTHER --store {ledger.store.url}` writes them elsewhere"
    )


def batch_at(output: str) -> str | None:
    """The batch whose results are at `output`, according to the receipt."""
    found = read_receipt(output)
    return None if found is None else found.batch_id


def write_results_to(ledger: Ledger, batch: BatchRecord, file: BinaryIO, output: str | None = None) -> None:
    """The results as JSONL, in the format of the input; of rows, the rows with their answers. `output`: the name of the
    file, which says how rows are written; None: stdout.
    """
    assert batch.results is not None
    table = table_of(batch)
    if table is not None:
        requests = partial(ledger.store.stream, batch.input.key, match=batch.input.etag)
        table.write(requests, partial(result_lines, ledger, batch), file, output)
        return
    chunks = ledger.store.stream(batch.results.key)
    if batch.input.format != "native":
        chunks = openai_file(chunks, batch_id=batch.batch_id, created=int(batch.created_at), is_output=None)
    for chunk in chunks:
        file.write(chunk)


def result_lines(ledger: Ledger, batch: BatchRecord) -> Iterator[bytes]:
    """The native result lines, in input order, without newlines."""
    assert batch.results is not None
    for line in iter_lines(ledger.store.stream(batch.results.key), line_bytes_max=RESULT_BYTES_MAX):
        yield line.data or b""


def table_of(batch: BatchRecord) -> AnsweredTable | None:
    """How the results of a batch are written as rows; None if its input had requests."""
    text = batch.metadata.get(TABLE)
    return None if text is None else decode_table(text)


def error_column(batch: BatchRecord) -> str | None:
    """The column with the reasons of failed rows; None if its input had requests."""
    table = table_of(batch)
    return None if table is None else table.columns.error


def read_receipt(output: str) -> Receipt | None:
    try:
        return documents.read(Path(output + RECEIPT_ENDING).read_bytes(), Receipt)
    except OSError:
        return None


def is_there(facts: FileFacts) -> bool:
    """Does a file of a receipt still exist, unchanged?"""
    try:
        return os.path.getsize(facts.path) == facts.bytes and file_digest(facts.path) == facts.sha256
    except OSError:
        return False


def _keep(path: str, why: str, say: Callable[[str], None]) -> None:
    """Keep a file that has what no run has, before it is written again. Raises: OSError."""
    if not os.path.isfile(path) or not os.path.getsize(path):
        return
    names = (f"{path}.edited{number or ''}" for number in count())
    kept = next(name for name in names if not os.path.lexists(name))
    os.replace(path, kept)
    say(f"{from_here(path)} {why} is kept as {os.path.basename(kept)}")


def facts_of(path: str, num_lines: int) -> FileFacts:
    return FileFacts(path=path, bytes=os.path.getsize(path), sha256=file_digest(path), lines=num_lines)


@contextmanager
def replaced(path: str) -> Iterator[str]:
    """`with replaced(path) as temporary`: at the end, the file `temporary` is synced and replaces `path`.

    The temporary name is fixed, so that a killed run leaves at most one such file and the next one reuses it.
    """
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.unfinished")
    try:
        yield temporary
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    _sync(temporary, os.O_RDONLY)
    os.replace(temporary, path)
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: str, flags: int) -> None:
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def lock_output(output: str | None) -> Iterator[None]:
    """`output`: its absolute path, None: stdout. Raises: OutputTaken where another process holds it, or its folder;
    SettingsError.

    The lock is a hidden file next to the output, removed at the end: not in a shared temporary folder, where others
    could take its name first, and not in the store, since two runs with two stores may write to one output.
    """
    if output is None:
        yield
        return
    with _locked(lock_path(output), output):
        folder = os.path.dirname(output)
        if is_locked(os.path.join(folder, _FOLDER_LOCK)):
            raise _being_written(folder)
        yield


@contextmanager
def lock_folder(folder: str) -> Iterator[None]:
    """Lock all outputs in `folder`, an absolute path, except those that `check_unlocked` finds. Raises: as above."""
    with _locked(os.path.join(folder, _FOLDER_LOCK), folder):
        yield


def check_unlocked(output: str) -> None:
    """Call it with the folder locked: of two processes that begin together, at least one sees the lock of the other.

    Raises: OutputTaken where another process holds this output.
    """
    if is_being_written(output):
        raise _being_written(output)


def _being_written(output: str) -> OutputTaken:
    return OutputTaken(f"another batchfile process is writing {output}; wait for it, or choose another output")


@contextmanager
def _locked(path: str, output: str) -> Iterator[None]:
    fd = _lock(path, output)
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(path)  # still locked, so that any process that opens the file can detect its removal
        unlock(fd)


def lock_path(output: str) -> str:
    folder, name = os.path.split(output)
    if len(os.fsencode(name)) > _FILE_NAME_BYTES_MAX - len("..lock"):
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return os.path.join(folder, f".{name}.lock")


def is_being_written(output: str) -> bool:
    """Does a process of this machine run this output or write its files?"""
    return is_locked(lock_path(output)) is True


def _lock(path: str, output: str) -> int:
    for _ in range(_LOCK_ATTEMPTS):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise SettingsError(
                f"{output}: its lock file {path} cannot be opened: {error.strerror}; remove it"
            ) from error
        close_in_children(fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            unlock(fd)
            if not isinstance(error, BlockingIOError):
                raise SettingsError(
                    f"{output}: its directory does not support file locks: {error.strerror}; choose another output"
                ) from error
            time.sleep(_LOCK_PAUSE_S)
            continue
        if _is_still_there(fd, path):
            return fd
        unlock(fd)
    raise _being_written(output)


def _is_still_there(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False
