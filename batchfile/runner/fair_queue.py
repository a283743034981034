"""Single requests that wait to be prepared, fair between batches: one that takes long holds up its own batch only.

Any thread may add; one thread takes.
"""

import threading
from collections import deque
from typing import NamedTuple

from batchfile.runner.active import PendingRequest
from batchfile.runner.watchdog import Calls
from batchfile.types import Request

JOB_S_MIN = 0.001  # what a job counts at least, so that batches of quick ones take turns


class Job(NamedTuple):
    """`item` is to be prepared with `request`. `is_alone`: then it runs with nothing else in flight."""

    item: PendingRequest
    request: Request
    is_alone: bool = False

    @property
    def batch_id(self) -> str:
        return self.item.shard.held.batch.batch_id


class FairQueue:
    """The batch whose jobs have taken the least time goes first. `size_bytes` sums the input lines that wait.

    `calls`: of the thread that takes.
    """

    def __init__(self) -> None:
        self.calls = Calls(is_warm=True)
        self.size_bytes = 0
        self._num = 0
        self._jobs: dict[str, deque[Job]] = {}
        self._spent_s: dict[str, float] = {}  # by batch; kept until nothing waits at all
        self._level_s = 0.0  # what the batch that was served last had spent: a batch that is new starts there
        self._added = threading.Condition()

    def add(self, job: Job) -> None:
        with self._added:
            if job.batch_id not in self._jobs:
                self._jobs[job.batch_id] = deque()
                self._spent_s[job.batch_id] = max(self._level_s, self._spent_s.get(job.batch_id, 0.0))
            self._jobs[job.batch_id].append(job)
            self._num += 1
            self.size_bytes += job.item.size
            self._added.notify_all()

    def __len__(self) -> int:
        return self._num

    def num_of(self, batch_id: str) -> int:
        """How many jobs of this batch wait."""
        return len(self._jobs.get(batch_id, ()))

    def take(self) -> Job | None:
        """The next one, None where nothing waits. After it was worked on, `charge` is due."""
        with self._added:
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
            self.size_bytes -= job.item.size
            return job

    def charge(self, job: Job, spent_s: float) -> None:
        with self._added:
            self._spent_s[job.batch_id] = self._spent_s.get(job.batch_id, 0.0) + max(spent_s, JOB_S_MIN)

    def wait(self, timeout_s: float) -> None:
        """Until something is added; at most `timeout_s`."""
        with self._added:
            self._added.wait(timeout_s)
