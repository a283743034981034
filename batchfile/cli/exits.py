"""The exit codes, and the one table from what was raised to what the process answers. Knows no command."""

import errno
import json
import os
import sys
from contextlib import suppress
from enum import IntEnum
from typing import NoReturn

import click

from batchfile.cli.stdout import StdoutLost
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
