"""Runs several store calls at once and returns the outcomes in order, to read the many small objects of a batch.

It knows no protocol. If a ledger's `num_in_flight` is 1, one call follows the other on the caller's thread, as tests
and simulations in virtual time need.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

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
    threads = ThreadPoolExecutor(ledger.num_in_flight, thread_name_prefix="store")
    calls, source, size = deque[tuple[Future[Made], int]](), iter(items), 0
    upcoming = list(islice(source, 1))
    try:
        while upcoming or calls:
            while upcoming and len(calls) < ledger.num_in_flight * AHEAD:
                more = size_of(upcoming[0])
                if calls and size + more > size_max > 0:
                    break
                calls.append((threads.submit(do, upcoming[0]), more))
                size += more
                upcoming = list(islice(source, 1))
            call, taken = calls.popleft()
            yield call.result()
            size -= taken
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
