"""Exit codes, the messages of errors, and the detection of lost output on stdout. Knows no command."""

import errno
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import Any, NoReturn

import click

from batchfile.errors import (
    BatchfileError,
    InvalidFile,
    InvalidRequest,
    NotEnded,
    OutputTaken,
    SettingsError,
    StoreFull,
    StoreUnavailable,
    StoreUnfit,
)


class Exit(IntEnum):
    """Stable exit codes, documented in `batchfile run --help`."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    FAILED_REQUESTS = 3
    INVALID_INPUT = 4
    OUTPUT_TAKEN = 7
    STUCK = os.EX_TEMPFAIL  # as the watchdog of a runner has it
    INTERRUPTED = 130
    TERMINATED = 143


EXIT_HELP = """\b
Exit codes:
  0    every request succeeded
  1    unexpected error; finished requests are kept
  2    wrong usage or an invalid setting
  3    finished, and some requests failed
  4    the input cannot be used
  7    the output belongs to another run
  75   the engine hangs; the same command resumes
  130  interrupted (Ctrl-C); the same command resumes
  143  terminated (SIGTERM); the same command resumes"""

_TABLE: tuple[tuple[type[Exception], Exit], ...] = (
    (InvalidFile, Exit.INVALID_INPUT),
    (InvalidRequest, Exit.USAGE),
    (NotEnded, Exit.INVALID_INPUT),
    (OutputTaken, Exit.OUTPUT_TAKEN),
    (SettingsError, Exit.USAGE),
)


class StdoutLost(OSError):
    """Stdout cannot be written. If its reader has closed it, a BrokenPipeError is raised instead."""

    def __str__(self) -> str:
        return f"stdout cannot be written ({self.strerror})"


def exit_of(error: BaseException) -> Exit:
    for kind, code in _TABLE:
        if isinstance(error, kind):
            return code
    return Exit.UNEXPECTED


def message_of(error: BaseException) -> str | None:
    """A message for a person, or None where only a traceback helps."""
    if isinstance(error, StdoutLost):
        return f"{error}: the output is incomplete, and nothing was changed; redirect it to a writable file"
    system = error if isinstance(error, OSError) else error.__cause__
    is_full = isinstance(system, OSError) and system.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    if is_full or isinstance(error, StoreFull):
        return "the disk is full; finished work is kept: free some space and run the same command again"
    if isinstance(error, StoreUnavailable | StoreUnfit):
        return f"the store: {error}"
    if isinstance(error, BatchfileError):
        return str(error)
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror or error}{where}"
    return None


def say_json(message: str, code: Exit) -> None:
    """Print an error in the format of --json. To stderr: stdout is for results only."""
    click.echo(json.dumps({"error": {"message": message, "exit_code": int(code)}}), err=True)


def end_process(code: int) -> NoReturn:
    """End without the interpreter's shutdown, which threads of a library may block or crash.

    Buffered stdout is dropped: it is part of an unfinished file, and flushing it may block.
    """
    with suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(code)


class _Stdout(io.FileIO):
    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            _discard()  # or the interpreter tries again when it exits, and reports it
            raise StdoutLost(error.errno, error.strerror) from None


def tell_lost_output() -> None:
    """Make a failed write to sys.stdout raise StdoutLost, to tell it from errors of files."""
    given = sys.__stdout__
    if given is None or sys.stdout is not given:
        return  # it was closed, or is captured
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Stdout(1, "w", closefd=False)),
        encoding=given.encoding,
        errors=given.errors,
        line_buffering=bool(given.line_buffering),
    )


def _discard() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


@contextmanager
def report_lost_output(what_now: str) -> Iterator[None]:
    """Wraps code that writes to stdout. `what_now`: the state of the work, and how to get the output.

    Only for a command that has changed something. Raises: BatchfileError where stdout cannot be written.
    """
    try:
        yield
        sys.stdout.flush()
    except StdoutLost as error:
        raise BatchfileError(f"{error}: {what_now}") from None
