"""How a command ends: its exit code, what is said of an error, and answers on stdout that must not be lost in silence.

Knows no command.
"""

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
    StoreUnavailable,
    StoreUnfit,
)


class Exit(IntEnum):
    """What a script may rely on; printed by `batchfile run --help`."""

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
  1    something unexpected; what was done is kept
  2    wrong usage or a wrong setting
  3    finished, and some requests failed
  4    the input can not be used
  7    the output belongs to another run
  75   the engine did not return from a call; the same command continues
  130  interrupted (Ctrl-C); the same command continues
  143  terminated (SIGTERM); the same command continues"""

_TABLE: tuple[tuple[type[Exception], Exit], ...] = (
    (InvalidFile, Exit.INVALID_INPUT),
    (InvalidRequest, Exit.USAGE),
    (NotEnded, Exit.INVALID_INPUT),
    (OutputTaken, Exit.OUTPUT_TAKEN),
    (SettingsError, Exit.USAGE),
)


class StdoutLost(OSError):
    """Stdout cannot be written. A reader that has gone is no such case: that stays a BrokenPipeError."""

    def __str__(self) -> str:
        return f"stdout cannot be written ({self.strerror})"


def exit_of(error: BaseException) -> Exit:
    for kind, code in _TABLE:
        if isinstance(error, kind):
            return code
    return Exit.UNEXPECTED


def explain(error: BaseException) -> str | None:
    """One message for a person, or None where only a traceback helps."""
    if isinstance(error, StdoutLost):
        return f"{error}: the answer is incomplete, and nothing was changed; send it to where it can be written"
    system = error if isinstance(error, OSError) else error.__cause__
    if isinstance(system, OSError) and system.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return "the disk is full; what was done is kept: free some space and run the same command again"
    if isinstance(error, StoreUnavailable | StoreUnfit):
        return f"the store: {error}"
    if isinstance(error, BatchfileError):
        return str(error)
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror or error}{where}"
    return None


def say_json(message: str, code: Exit) -> None:
    """The one shape of an error where --json is given. On stderr: stdout has answers only."""
    click.echo(json.dumps({"error": {"message": message, "exit_code": int(code)}}), err=True)


def end_process(code: int) -> NoReturn:
    """Without the interpreter's own end, which the threads of a library may block or crash.

    What stdout still holds is part of an unfinished file, and its reader may not read.
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
            _discard()  # or the interpreter tries once more at its end, and says so
            raise StdoutLost(error.errno, error.strerror) from None


def tell_lost_output() -> None:
    """From now on a failed write of sys.stdout is a StdoutLost, which no error of a file is taken for."""
    given = sys.__stdout__
    if given is None or sys.stdout is not given:
        return  # it was closed, or is somebody's capture
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
    """Around what writes to stdout. `what_now`: what became of the work, and how to come by the answer.

    Only for a command that has changed something. Raises: BatchfileError where stdout cannot be written.
    """
    try:
        yield
        sys.stdout.flush()
    except StdoutLost as error:
        raise BatchfileError(f"{error}: {what_now}") from None
