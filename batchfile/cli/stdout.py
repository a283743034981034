"""Answers on stdout that must not be lost in silence, and never be repeated by mistake."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from batchfile.errors import BatchfileError


@contextmanager
def report_lost_output(what_now: str) -> Iterator[None]:
    """Around what writes to stdout. `what_now`: what became of the work, and how to come by the answer.

    Raises: BatchfileError where stdout cannot be written. A reader that has gone is no such case.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)  # or the interpreter tries once more at its end, and says so
        os.close(nowhere)
        raise BatchfileError(f"stdout cannot be written ({error.strerror or error}): {what_now}") from None
