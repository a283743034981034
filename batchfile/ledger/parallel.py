"""Runs several store calls at once and returns the outcomes in order, to read the many small objects of a batch.

It knows no protocol. If a ledger's `num_in_flight` is 1, one call follows the other on the caller's thread, as tests
and simulations in virtual time need.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from itertools import islice
from typing import Generic, TypeVar

from batchfile.ledger.base import Ledger

AHEAD = 2  # outcomes that may wait for an earlier one, per call in flight

Given = TypeVar("Given")
Made = TypeVar("Made")


def in_order(
    ledger: Ledger,
    do: Callable[[Given], Made],
    items: Iterable[Given],
    *,
    size_of: Callable[[Given], int] = lambda item: 0,
    size_max: int = 0,
) -> Generator[Made, None, None]:
    """The results of `do` for the items, in order, with at most `ledger.num_in_flight` calls at once.

    The `size_of` of the items in progress or waiting to be taken adds up to at most `size_max`, or is of a single item.
    `items` is iterated on the caller's thread. Raises what `do` raises, in its place. Leaving early waits for no call.
    """
    if ledger.num_in_flight <= 1:
        yield from map(do, items)
        return
    calls = _Calls(do, ledger.num_in_flight)
    source, sizes, size = iter(items), deque[int](), 0
    upcoming = list(islice(source, 1))
    try:
        while upcoming or sizes:
            while upcoming and len(sizes) < ledger.num_in_flight * AHEAD:
                more = size_of(upcoming[0])
                if sizes and size + more > size_max > 0:
                    break
                calls.begin(upcoming[0])
                sizes.append(more)
                size += more
                upcoming = list(islice(source, 1))
            yield calls.next()
            size -= sizes.popleft()
    finally:
        calls.stop()


class _Call(Generic[Given, Made]):
    def __init__(self, item: Given) -> None:
        self.item = item
        self.made: list[Made] = []
        self.error: BaseException | None = None

    @property
    def is_over(self) -> bool:
        return bool(self.made) or self.error is not None


class _Calls(Generic[Given, Made]):
    """Threads that take calls from one queue. `begin` and `next` must be called from one thread."""

    def __init__(self, do: Callable[[Given], Made], num_threads_max: int) -> None:
        self._do = do
        self._num_threads_max = num_threads_max
        self._num_threads = 0
        self._num_idle = 0
        self._changed = threading.Condition()
        self._queue: deque[_Call[Given, Made]] = deque()
        self._calls: deque[_Call[Given, Made]] = deque()
        self._is_stopped = False

    def begin(self, item: Given) -> None:
        call = _Call[Given, Made](item)
        self._calls.append(call)
        with self._changed:
            self._queue.append(call)
            is_short = self._num_idle < len(self._queue) and self._num_threads < self._num_threads_max
            self._num_threads += is_short
            self._changed.notify_all()
        if is_short:
            threading.Thread(target=self._work, name="store", daemon=True).start()

    def next(self) -> Made:
        """The outcome of the call that began first. Raises what it raised."""
        call = self._calls.popleft()
        with self._changed:
            while not call.is_over:
                self._changed.wait()
        if call.error is not None:
            raise call.error
        return call.made[0]

    def stop(self) -> None:
        """Starts no more calls."""
        with self._changed:
            self._is_stopped = True
            self._queue.clear()
            self._changed.notify_all()

    def _work(self) -> None:
        while (call := self._take()) is not None:
            try:
                made, error = [self._do(call.item)], None
            except BaseException as raised:  # noqa: BLE001 the caller re-raises it
                made, error = [], raised
            with self._changed:
                call.made, call.error = made, error
                self._changed.notify_all()

    def _take(self) -> _Call[Given, Made] | None:
        with self._changed:
            self._num_idle += 1
            while not self._queue and not self._is_stopped:
                self._changed.wait()
            self._num_idle -= 1
            return self._queue.popleft() if self._queue else None
