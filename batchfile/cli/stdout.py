"""Answers on stdout that must not be lost in silence, and never be repeated by mistake."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from batchfile.errors import BatchfileError


class StdoutLost(OSError):
    """Stdout cannot be written. A reader that has gone is no such case: that stays a BrokenPipeError."""

    def __str__(self) -> str:
        return f"stdout cannot be written ({self.strerror})"


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
