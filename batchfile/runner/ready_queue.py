"""The prefetched requests and the order in which they go to the engine. Pure; the runner locks around it.

While more input is to come: the older prefetch first (nothing starves), inside it shared prefixes side by side, inside
those the longest first. Once the input has ended: the longest first, so that the last slots empty together. If more
comes after all, it goes behind what waited then, so that no short request waits for longer ones without end.
A group that is to run *alone* goes when nothing is in flight, and nothing joins it.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterable

from batchfile.runner.active import PendingRequest

_Key = tuple[int, int, int, int, int]


class ReadyQueue:
    """Requests that wait in this process. `size_bytes` sums their input lines."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._heap: list[tuple[_Key, PendingRequest]] = []
        self._alone: deque[list[PendingRequest]] = deque()
        self._is_alone_running = False
        self._generation = 0
        self._num_ends = 0  # how often more came after an end
        self._has_ended = False

    def __len__(self) -> int:
        return len(self._heap) + sum(len(group) for group in self._alone)

    def push(self, items: Iterable[PendingRequest], *, new_generation: bool = False) -> None:
        self._generation += new_generation
        for item in items:
            self.size_bytes += item.size
            heapq.heappush(self._heap, (self._key(item, self._num_ends), item))

    def push_alone(self, group: list[PendingRequest], *, is_next: bool = False) -> None:
        if group:
            self.size_bytes += sum(item.size for item in group)
            if is_next:
                self._alone.appendleft(group)
            else:
                self._alone.append(group)

    def set_ended(self, has_ended: bool) -> None:
        """Is there no more input to come? Reorders what waits."""
        if has_ended != self._has_ended:
            self._has_ended = has_ended
            self._num_ends += not has_ended
            self._heap = [(self._key(item, num_ends), item) for (num_ends, *_), item in self._heap]
            heapq.heapify(self._heap)

    def pop(self, num_max: int, num_in_flight: int) -> list[PendingRequest]:
        """At most `num_max` requests to start now, given how many are in flight."""
        if self._is_alone_running:
            if num_in_flight:
                return []
            self._is_alone_running = False
        if self._alone:
            if num_in_flight:
                return []
            self._is_alone_running = True
            return self._count_out(self._alone.popleft())
        heap = self._heap
        return self._count_out([heapq.heappop(heap)[1] for _ in range(min(num_max, len(heap)))])

    @property
    def has_ended(self) -> bool:
        return self._has_ended

    @property
    def is_alone_running(self) -> bool:
        return self._is_alone_running

    def drop(self, is_dropped: Callable[[PendingRequest], bool]) -> None:
        """Forget the requests of shards that are no longer ours."""
        self._heap = [entry for entry in self._heap if not is_dropped(entry[1])]
        heapq.heapify(self._heap)
        groups = ([item for item in group if not is_dropped(item)] for group in self._alone)
        self._alone = deque(group for group in groups if group)
        self.size_bytes = sum(item.size for _, item in self._heap)
        self.size_bytes += sum(item.size for group in self._alone for item in group)

    def _count_out(self, items: list[PendingRequest]) -> list[PendingRequest]:
        for item in items:
            self.size_bytes -= item.size
        return items

    def _key(self, item: PendingRequest, num_ends: int) -> _Key:
        # `key` grows with each request of a process: it keeps equals in input order and the heap from comparing items.
        if self._has_ended:
            return (num_ends, -item.prepared.cost, item.prepared.prefix, 0, item.key)
        return (num_ends, self._generation, item.prepared.prefix, -item.prepared.cost, item.key)
