"""Limits how many requests an endpoint gets at a time, and decides which one is next.

The limit follows what the endpoint can take: additive increase, multiplicative decrease (as TCP's, RFC 5681).
"""

import asyncio
import heapq


class Limit:
    """The number of allowed requests, between 1 and `most`. Times are on the caller's clock."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._now = float(most)
        self._lowered_at = float("-inf")

    @property
    def allowed(self) -> int:
        return int(self._now)

    def raise_(self) -> None:
        """After a success: by one per round of requests."""
        self._now = min(float(self._most), self._now + 1 / self._now)

    def lower(self, asked_at: float, now: float) -> None:
        """After a 429 to a request sent at `asked_at`. Requests in flight together halve it only once."""
        if asked_at >= self._lowered_at:
            self._now = max(1.0, self._now / 2)
            self._lowered_at = now


class Slots:
    """For one event loop. Requests are served in order of arrival, however many attempts they had."""

    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        self._num_taken = 0
        self._is_open = True
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    @property
    def is_open(self) -> bool:
        return self._is_open

    @property
    def num_taken(self) -> int:
        return self._num_taken

    def open(self) -> None:
        self._is_open = True
        self.grant()

    def shut(self) -> None:
        """No slot is given until `open`; taken slots stay taken."""
        self._is_open = False

    async def take(self, order: int) -> None:
        """Waits for a slot; the lowest `order` gets the next one."""
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (order, granted))
        self.grant()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self.give()
            raise

    def give(self) -> None:
        self._num_taken -= 1
        self.grant()

    def grant(self) -> None:
        """Gives free slots to waiting requests. Call it after the limit has changed."""
        while self._is_open and self._waiting and self._num_taken < self._limit.allowed:
            _, granted = heapq.heappop(self._waiting)
            if not granted.done():
                self._num_taken += 1
                granted.set_result(None)
