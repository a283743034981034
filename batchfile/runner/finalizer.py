"""Ends batches while the engine runs, and works as a janitor: expires, finishes and deletes what is due.

A thread calls `tick`, which does what is due. Any number of processes may do this at once.
"""

from collections.abc import Callable

import structlog

from batchfile.errors import BatchDamaged, StoreError
from batchfile.inbox import outbox
from batchfile.janitor import Janitor
from batchfile.ledger import batches
from batchfile.ledger.records import BatchRecord
from batchfile.ledger.status import StatusReader
from batchfile.long_work import LongWork
from batchfile.runner.claimer import Claimer
from batchfile.runner.state import SharedState

log = structlog.get_logger()

JANITOR_S = 15.0
LOOK_AGAIN_S = 2.0  # before the second look at a batch that cannot end yet; doubles
LOOK_AGAIN_S_MAX = 15.0


class Finalizer:
    """`long_work` takes over assemblies that would hold up the end of other batches, if there are any.

    `on_ended` is called for each batch of `only`. Once the runner stops, an assembly stops at the next range; any
    process repeats it.
    """

    def __init__(
        self, state: SharedState, claimer: Claimer, long_work: LongWork, on_ended: Callable[[BatchRecord], None]
    ) -> None:
        self._state = state
        self._on_ended = on_ended
        self._ledger, self._aside, self._options = state.ledger, state.aside, state.options
        self._claimer = claimer
        self._long_work = long_work
        self._reader = StatusReader(state.ledger)
        self._janitor = Janitor(
            state.ledger,
            runner=state.options.runner_id,
            reader=self._reader,
            defer=self._defer,
            inbox=state.options.inbox,
            aside=state.aside,
        )
        self._looks: dict[str, tuple[float, float]] = {}  # batch -> when to look again, and the last wait in seconds
        self._janitor_ran_at = float("-inf")

    def tick(self) -> None:
        """Raises: BatchDamaged if a batch of `only` will never end."""
        now, is_only = self._state.now(), bool(self._options.batch_ids)
        candidates = self._claimer.exhausted() + self._claimer.closed()
        looks, self._looks = self._looks, {}
        for batch_id in candidates:
            at, wait_s = looks.get(batch_id, (now, LOOK_AGAIN_S / 2))
            if at <= now:
                wait_s = LOOK_AGAIN_S if is_only else min(2 * wait_s, LOOK_AGAIN_S_MAX)
                at = now + wait_s
                self._finish(batch_id)
            self._looks[batch_id] = (at, wait_s)

    def janitor(self) -> None:
        """Do what is due of the janitor's work. Slow if many batches are open, so it has its own thread."""
        now = self._state.now()
        if self._options.is_janitor and now - self._janitor_ran_at >= JANITOR_S:
            self._janitor_ran_at = now
            try:
                self._janitor.tick()
            except StoreError as error:
                log.warning("janitor.paused", error=str(error))
            except Exception:  # cleaning up must not stop the runner
                log.exception("janitor.failed")

    def _defer(self, batch: BatchRecord) -> bool:
        """Is this batch ended elsewhere in this process: here, where it can be stopped, or by `long_work`?"""
        return batch.batch_id in self._options.batch_ids or self._long_work.take(batch)

    def _finish(self, batch_id: str) -> None:
        state, is_only = self._state, batch_id in self._options.batch_ids
        try:
            found = self._reader.read(batch_id)
            if found is not None and found.is_running:
                return  # another runner or pool is not done yet; finding that out must not cost a read of every record
            if found is not None and found.batch.state != "ended" and self._long_work.take(found.batch):
                return
            state.is_assembling = True
            ended = outbox.finish(
                self._ledger, batch_id, runner=self._options.runner_id, is_stopped=lambda: state.is_stopping
            )
        except (BatchDamaged, StoreError) as error:
            if isinstance(error, StoreError):
                log.warning("finish.paused", batch_id=batch_id, error=str(error))
            elif is_only:
                raise
            self._aside.put(batch_id, "end", error)
            return
        finally:
            state.is_assembling = False
        self._aside.worked(batch_id, "end")
        if ended is not None and ended.state == "ended":
            if is_only and batch_id not in state.ended:
                self._on_ended(ended)
                state.ended[batch_id] = ended
                state.notify()  # the run is over, perhaps
            self._claimer.drop(batch_id)
        elif ended is None and is_only and batches.read_batch(self._ledger, batch_id) is None:
            raise BatchDamaged(f"the batch {batch_id} was deleted while it ran")
