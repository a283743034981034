"""Ends batches beside the engine, and works as a janitor: expires, finishes what nobody finished, deletes what is old.

`tick` does what is due; a thread repeats it. Harmless in any number of processes.
"""

from collections.abc import Callable

import structlog

from batchfile.errors import BatchDamaged, StoreError
from batchfile.inbox import outbox
from batchfile.inbox.scan import Inbox
from batchfile.janitor import Janitor
from batchfile.ledger import batches
from batchfile.ledger.base import Ledger
from batchfile.ledger.records import BatchRecord
from batchfile.ledger.set_aside import SetAside
from batchfile.ledger.status import StatusReader
from batchfile.long_work import LongWork
from batchfile.runner.checkpointer import Checkpointer
from batchfile.runner.claimer import Claims

log = structlog.get_logger()

JANITOR_S = 15.0
RETRY_S = 2.0  # before the second look at a batch that could not end yet; doubles
RETRY_S_MAX = 15.0


class Finalizer:
    """Of the batch `only`: `ended` is its record once it has ended, `damaged` says why it never will.

    `long_work` takes over what would hold up the end of other batches; not where there is no other. Once `is_stopped`,
    an assembly is left at the next range; any process does it again.
    """

    def __init__(
        self,
        ledger: Ledger,
        claims: Claims,
        checkpointer: Checkpointer,
        runner_id: str,
        long_work: LongWork,
        *,
        is_janitor: bool,
        only: str | None = None,
        inbox: Inbox | None = None,
        is_stopped: Callable[[], bool] = lambda: False,
        aside: SetAside,
    ) -> None:
        self.is_assembling = False
        self._is_stopped = is_stopped
        self.ended: BatchRecord | None = None
        self.damaged: str | None = None
        self._ledger = ledger
        self._claims = claims
        self._checkpointer = checkpointer
        self._runner_id = runner_id
        self._reader = StatusReader(ledger)
        self._long_work = long_work
        self._aside = aside
        self._janitor = None
        if is_janitor:
            self._janitor = Janitor(
                ledger, runner=runner_id, reader=self._reader, defer=self._defer, inbox=inbox, aside=aside
            )
        self._only = only
        self._looks: dict[str, tuple[float, float]] = {}  # batch -> when to look again, and how long that was waited
        self._janitor_ran_at = float("-inf")

    def tick(self) -> None:
        now = self._ledger.clock.monotonic()
        candidates = self._claims.exhausted(self._checkpointer.is_working)
        if self._only is not None and self._claims.view_of(self._only) is None:
            candidates.append(self._only)  # someone ends it, or ended it, or it is gone
        looks, self._looks = self._looks, {}
        for batch_id in candidates:
            at, wait_s = looks.get(batch_id, (now, RETRY_S / 2))
            if at <= now:
                wait_s = RETRY_S if self._only is not None else min(2 * wait_s, RETRY_S_MAX)
                at = now + wait_s
                self._finish(batch_id)
            self._looks[batch_id] = (at, wait_s)

    def janitor(self) -> None:
        """What is due of the janitor's work. Takes long where many batches are open: on a thread of its own."""
        now = self._ledger.clock.monotonic()
        if self._janitor is not None and now - self._janitor_ran_at >= JANITOR_S:
            self._janitor_ran_at = now
            try:
                self._janitor.tick()
            except StoreError as error:
                log.warning("janitor.paused", error=str(error))
            except Exception:  # tidying is no reason to stop working
                log.exception("janitor.failed")

    def _defer(self, batch: BatchRecord) -> bool:
        """Is this batch ended elsewhere in this process: here, where that can be stopped, or by `long_work`?"""
        return batch.batch_id == self._only or self._long_work.take(batch)

    def _finish(self, batch_id: str) -> None:
        try:
            status = self._reader.read(batch_id)
            if status is not None and status.batch.state == "open" and status.pending > 0:
                return  # another runner or pool is not done yet; to see that must not cost a read of every record
            if status is not None and status.batch.state != "ended" and self._long_work.take(status.batch):
                return
            self.is_assembling = True
            ended = outbox.finish(self._ledger, batch_id, runner=self._runner_id, is_stopped=self._is_stopped)
        except BatchDamaged as error:
            if batch_id == self._only:
                self.damaged = str(error)
            else:
                self._aside.put(batch_id, "end", error)
            return
        except StoreError as error:
            log.warning("finish.paused", batch_id=batch_id, error=str(error))
            self._aside.put(batch_id, "end", error)
            return
        finally:
            self.is_assembling = False
        self._aside.worked(batch_id, "end")
        if batch_id == self._only and ended is None and batches.read_batch(self._ledger, batch_id) is None:
            self.damaged = f"the batch {batch_id} was deleted while it ran"
        if ended is not None and ended.state == "ended":
            if batch_id == self._only:
                self.ended = ended
            self._claims.drop(batch_id)
