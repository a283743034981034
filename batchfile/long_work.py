"""Plans and ends large batches on separate threads, so that short work of the same process never waits for them.

Bounded: a batch waits in a queue while all threads of its kind are busy. Knows neither API nor runner.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from batchfile.errors import BatchDamaged, BatchfileError, StoreError
from batchfile.inbox import outbox
from batchfile.inbox.records import inbox_path
from batchfile.ledger.base import Ledger
from batchfile.ledger.records import BatchRecord
from batchfile.ledger.set_aside import SetAside
from batchfile.plan import pending

log = structlog.get_logger()

LONG_BYTES = 64 * 1024 * 1024  # a larger input takes seconds to be planned, and its results to be assembled
LONG_LINES = 100_000
PLAIN = ".jsonl"  # any other file may unpack to any size
ENDS_S_MAX = 15.0  # at a stop, for batches that are being ended; then these too are released
STOP_S = 5.0  # unfinished work is released within this time, or its lease expires


@dataclass(slots=True)
class _Lane:
    """One kind of work: the batches that wait, and how many threads work on it."""

    do: Callable[[str], BatchRecord | None]
    waiting: deque[str] = field(default_factory=deque)
    num_threads: int = 0


class LongWork:
    """`runner`: the name of this process. `num_threads`: of each kind; 0: it takes nothing. `on_ended` is called for
    each batch that ends here. A batch that fails is set aside: until its pause is over, it is accepted but not started.

    The threads die with the process; any other process repeats the work.
    """

    def __init__(
        self,
        ledger: Ledger,
        runner: str,
        *,
        num_threads: int = 1,
        on_ended: Callable[[BatchRecord], None] = lambda batch: None,
        aside: SetAside | None = None,
    ) -> None:
        self.num_threads = num_threads
        self._clock = ledger.clock
        self._aside = aside or SetAside(ledger)
        self._on_ended = on_ended
        self._changed = threading.Condition()
        self._under_way: set[str] = set()
        self._is_stopped = False
        self._leaves_ends = False
        self._planning = _Lane(
            lambda batch_id: pending.plan(ledger, batch_id, runner=runner, is_stopped=lambda: self._is_stopped)
        )
        self._ending = _Lane(
            lambda batch_id: outbox.finish(ledger, batch_id, runner=runner, is_stopped=lambda: self._leaves_ends)
        )

    def take(self, batch: BatchRecord) -> bool:
        """Plan or end this batch on a thread here, if that takes long. False: it is short, the caller does it.

        `batch` as it was read: planning, or ending, or open and complete. Repeated calls start it once.
        """
        if self.num_threads == 0 or not is_long(batch):
            return False
        if self._aside.left_s(batch.batch_id, "long"):
            return True
        lane = self._planning if batch.state == "planning" else self._ending
        with self._changed:
            if self._is_stopped or batch.batch_id in self._under_way:
                return True
            self._under_way.add(batch.batch_id)
            lane.waiting.append(batch.batch_id)
            is_short = lane.num_threads < self.num_threads
            lane.num_threads += is_short
        if is_short:
            threading.Thread(target=self._work, args=(lane,), name="long-work", daemon=True).start()
        return True

    def stop(self, *, leaves_ends: bool = False) -> None:
        """Start nothing more, and wait a while for batches that are being ended; with `leaves_ends` do not wait.

        Unfinished work is then released, so that other processes start at once. Planning is released immediately, so
        that the end of this process does not count against the file.
        """
        with self._changed:
            self._is_stopped = True
            self._planning.waiting.clear()
            self._ending.waiting.clear()
            if not leaves_ends:
                self._wait_for([self._ending], ENDS_S_MAX)
            self._leaves_ends = True
            self._wait_for([self._planning, self._ending], STOP_S)

    def _wait_for(self, lanes: list[_Lane], seconds: float) -> None:
        """Wait until no thread works there. Call it with the lock held."""
        until = self._clock.monotonic() + seconds
        while any(lane.num_threads for lane in lanes) and (left_s := until - self._clock.monotonic()) > 0:
            self._changed.wait(left_s)

    def _work(self, lane: _Lane) -> None:
        while (batch_id := self._next(lane)) is not None:
            try:
                batch = lane.do(batch_id)
                if batch is not None and batch.state == "ended":
                    self._on_ended(batch)
                self._aside.worked(batch_id, "long")
            except (StoreError, BatchDamaged) as error:
                self._set_aside(batch_id, error)
            except Exception as error:  # the top of this thread
                log.exception("long_work.failed", batch_id=batch_id)
                self._set_aside(batch_id, BatchDamaged(f"{batch_id}: unexpected error: {error!r}"))
            with self._changed:
                self._under_way.discard(batch_id)

    def _set_aside(self, batch_id: str, error: BatchfileError) -> None:
        try:
            self._aside.put(batch_id, "long", error)
        except BatchfileError:  # too many batches are set aside
            log.warning("long_work.left_to_janitor", batch_id=batch_id, error=str(error))

    def _next(self, lane: _Lane) -> str | None:
        """The next batch; None: nothing waits, and this thread ends."""
        with self._changed:
            if lane.waiting:
                return lane.waiting.popleft()
            lane.num_threads -= 1
            self._changed.notify_all()
            return None


def is_long(batch: BatchRecord) -> bool:
    """Does planning or ending this batch take more than a moment?"""
    if batch.state == "planning":
        path = inbox_path(batch)
        is_plain = path is None or path.endswith(PLAIN)
        return batch.input.size > LONG_BYTES or not is_plain
    return bool(batch.plan_key) and (batch.input.size > LONG_BYTES or batch.total > LONG_LINES)
