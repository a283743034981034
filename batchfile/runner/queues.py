"""The order in which a runner starts things: requests for the engine, jobs of batches, turns of tenants. No I/O."""

import heapq
import threading
from collections import deque
from collections.abc import Callable, Iterable
from random import Random
from typing import Generic, Protocol, TypeVar

from batchfile.engine.base import Prepared

JOB_S_MIN = 0.001  # the least that a job counts, so that batches of quick jobs take turns


class Queued(Protocol):
    """A request that can go to the engine. `key` grows with each request; `size`: bytes of its input line."""

    key: int
    size: int
    prepared: Prepared


class BatchJob(Protocol):
    """Something to do for a batch."""

    @property
    def batch_id(self) -> str: ...

    @property
    def size(self) -> int: ...


W = TypeVar("W", bound=Queued)
J = TypeVar("J", bound=BatchJob)
_Key = tuple[int, int, int, int, int]


class ReadyQueue(Generic[W]):
    """Prefetched requests that wait in this process. The caller locks around it. `size_bytes` sums their input lines.

    While more input is to come: the older prefetch first (nothing starves), in it shared prefixes next to each other,
    and among those the longest first. Once the input has ended: the longest first, so that the last slots empty
    together. If more comes after all, it goes after everything that waited then, so that no short request waits forever
    for longer ones. A group that must run *alone* starts when nothing is in flight, and nothing joins it.
    """

    def __init__(self) -> None:
        self.size_bytes = 0
        self.has_ended = False
        self.is_alone_running = False
        self._heap: list[tuple[_Key, W]] = []
        self._alone: deque[list[W]] = deque()
        self._num_alone = 0
        self._generation = 0
        self._num_ends = 0  # how often more input came after its end

    def __len__(self) -> int:
        return len(self._heap) + self._num_alone

    def push(self, items: Iterable[W], *, new_generation: bool = False) -> None:
        self._generation += new_generation
        for item in items:
            self.size_bytes += item.size
            heapq.heappush(self._heap, (self._key(item, self._num_ends), item))

    def push_alone(self, group: list[W], *, is_next: bool = False) -> None:
        if group:
            self._count_alone(group, 1)
            if is_next:
                self._alone.appendleft(group)
            else:
                self._alone.append(group)

    def set_ended(self, has_ended: bool) -> None:
        """Is there no more input to come? Reorders the waiting requests."""
        if has_ended != self.has_ended:
            self.has_ended = has_ended
            self._num_ends += not has_ended
            self._heap = [(self._key(item, num_ends), item) for (num_ends, *_), item in self._heap]
            heapq.heapify(self._heap)

    def pop(self, num_max: int, num_in_flight: int) -> list[W]:
        """At most `num_max` requests to start now, given how many are in flight."""
        if (self._alone or self.is_alone_running) and num_in_flight:
            return []
        self.is_alone_running = bool(self._alone)
        if self._alone:
            group = self._alone.popleft()
            self._count_alone(group, -1)
            return group
        heap = self._heap
        items = [heapq.heappop(heap)[1] for _ in range(min(num_max, len(heap)))]
        self.size_bytes -= sum(item.size for item in items)
        return items

    def drop(self, is_dropped: Callable[[W], bool]) -> None:
        """Forget the requests of shards that are no longer ours."""
        self._heap = [entry for entry in self._heap if not is_dropped(entry[1])]
        heapq.heapify(self._heap)
        self.size_bytes = sum(item.size for _, item in self._heap)
        groups, self._alone, self._num_alone = self._alone, deque(), 0
        for group in groups:
            self.push_alone([item for item in group if not is_dropped(item)])

    def _count_alone(self, group: list[W], sign: int) -> None:
        self._num_alone += sign * len(group)
        self.size_bytes += sign * sum(item.size for item in group)

    def _key(self, item: W, num_ends: int) -> _Key:
        # `key` keeps equal requests in input order, and the heap from comparing items.
        if self.has_ended:
            return (num_ends, -item.prepared.cost, item.prepared.prefix, 0, item.key)
        return (num_ends, self._generation, item.prepared.prefix, -item.prepared.cost, item.key)


class FairQueue(Generic[J]):
    """Jobs of several batches: the batch whose jobs have taken the least time goes first, so that a batch of slow jobs
    holds up only itself. Any thread adds, one takes. `size` sums the waiting jobs.

    `lock` guards it; `added` is its condition.
    """

    def __init__(self, lock: "threading.RLock | None" = None) -> None:
        self.size = 0
        self.added = threading.Condition(lock)
        self._num = 0
        self._jobs: dict[str, deque[J]] = {}
        self._spent_s: dict[str, float] = {}  # by batch; kept until nothing waits at all
        self._level_s = 0.0  # what the last served batch had spent; a new batch starts there

    def add(self, job: J) -> None:
        with self.added:
            if job.batch_id not in self._jobs:
                self._jobs[job.batch_id] = deque()
                self._spent_s[job.batch_id] = max(self._level_s, self._spent_s.get(job.batch_id, 0.0))
            self._jobs[job.batch_id].append(job)
            self._num += 1
            self.size += job.size
            self.added.notify_all()

    def __len__(self) -> int:
        return self._num

    def num_of(self, batch_id: str) -> int:
        """How many jobs of this batch wait."""
        return len(self._jobs.get(batch_id, ()))

    def take(self) -> J | None:
        """The next job, or None if none waits. Call `charge` after it is done."""
        with self.added:
            if not self._jobs:
                self._spent_s.clear()
                self._level_s = 0.0
                return None
            batch_id = min(self._jobs, key=self._spent_s.__getitem__)
            self._level_s = self._spent_s[batch_id]
            job = self._jobs[batch_id].popleft()
            if not self._jobs[batch_id]:
                del self._jobs[batch_id]
            self._num -= 1
            self.size -= job.size
            return job

    def charge(self, job: J, spent_s: float) -> None:
        with self.added:
            self._spent_s[job.batch_id] = self._spent_s.get(job.batch_id, 0.0) + max(spent_s, JOB_S_MIN)

    def wait(self, timeout_s: float) -> None:
        """Wait until something is added, at most `timeout_s`."""
        with self.added:
            self.added.wait(timeout_s)


class TenantRotation:
    """Whose turn it is: of the tenants with something to do here, the one that has waited longest.

    Each runner takes turns by itself and remembers nothing beyond its process. So each of `n` tenants gets every n-th
    turn of every runner, however many batches, shards or runners there are.
    """

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._num = 0
        self._last: dict[str, int] = {}  # by tenant: the number of its last turn

    def take(self, tenants: Iterable[str]) -> str:
        """The next tenant, whose turn it is now. Tenants that never had a turn go first, in random order.

        So runners that start together do not all begin with the same tenant. Raises: ValueError without tenants.
        """
        waiting = sorted(set(tenants))  # sorted, because the order of a set does not repeat with the seed
        self._rng.shuffle(waiting)
        tenant = min(waiting, key=lambda one: self._last.get(one, 0))
        self._num += 1
        self._last[tenant] = self._num
        return tenant
