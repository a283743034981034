"""Signals that ask a process to stop, heard also where the main thread does not respond.

Handlers run in the main thread, between two of its instructions. A call that blocks for long (a step of an engine in
this process, an import) would keep them waiting, so a thread hears of each signal too and ends the process where the
main thread does not. That is safe at any moment: results are committed by conditional writes, and a guard kills the
engine's processes (engine/vllm/processes.py).
"""

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

NUMBERS = (signal.SIGINT, signal.SIGTERM)
_OVER = b"\0"  # no signal has this number


@contextmanager
def hearing(
    handle: Callable[[int, FrameType | None], None],
    patience_s: Callable[[int], float],
    end: Callable[[int], NoReturn],
) -> Iterator[None]:
    """Enter it in the main thread.

    `handle` runs in the main thread, for each signal. `patience_s` and `end` are called by the thread: the first for
    each signal, with how many have come, gives the seconds that the main thread has from then on (never more than
    before); the second, when these are over, with the last signal.
    """
    near, far = os.pipe()
    for fd in (near, far):
        os.set_blocking(fd, False)
    old = {number: signal.signal(number, handle) for number in NUMBERS}
    old_fd = signal.set_wakeup_fd(far, warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(near, patience_s, end), name="signals", daemon=True)
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(old_fd)
        for number, handler in old.items():
            signal.signal(number, handler)
        os.write(far, _OVER)
        watch.join()
        os.close(near)
        os.close(far)


def _watch(near: int, patience_s: Callable[[int], float], end: Callable[[int], NoReturn]) -> None:
    num, last, deadline = 0, int(signal.SIGINT), float("inf")
    while True:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            end(last)
        if not select.select([near], [], [], min(left_s, 3600.0))[0]:
            continue
        heard = os.read(near, 64)
        if _OVER in heard:
            return
        ours = [number for number in heard if number in NUMBERS]
        if ours:
            num, last = num + len(ours), ours[-1]
            deadline = min(deadline, time.monotonic() + patience_s(num))
