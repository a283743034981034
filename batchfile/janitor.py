"""Plans, expires and ends batches that no other process did, deletes old ones, and repairs the queue.

A tick lists the index and looks at the batches that are due. Every step may be interrupted and repeated, by any number
of processes at once; what a process remembers only saves it requests.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import structlog

from batchfile.errors import BatchDamaged, BatchfileError, StoreError, StoreUnavailable
from batchfile.inbox import outbox
from batchfile.inbox.keys import OUTBOX_PREFIX
from batchfile.inbox.scan import Inbox
from batchfile.ledger import batches, keys, retention
from batchfile.ledger.base import Ledger
from batchfile.ledger.batch_status import BatchStatus
from batchfile.ledger.cas import load, must_know
from batchfile.ledger.heartbeats import sweep_heartbeats
from batchfile.ledger.idempotency import sweep_idempotency
from batchfile.ledger.records import BatchRecord
from batchfile.ledger.set_aside import UNANSWERED_MAX, SetAside
from batchfile.ledger.shards import give_back_owed
from batchfile.ledger.status import BatchSnapshot, StatusReader
from batchfile.plan import pending

log = structlog.get_logger()

TICK_S = 15.0
LOOKS_MAX = 500  # batches looked at in one tick, the longest overdue first
RELOOK_S = 3600.0  # an ended batch may be deleted by its user
DAMAGED_S = 600.0  # a damaged one may be restored
STUCK_S = 60.0  # a batch with an unexpected error
SWEEP_S = 3600.0  # between two looks at objects that belong to no batch

UPLOAD_S = 48 * 3600.0  # our writers take less than this for one object
UPLOADED = ("batches/", "files/", "uploads/", OUTBOX_PREFIX)  # where this service writes large objects


def _abort_uploads(ledger: Ledger) -> None:
    """Abort the multipart uploads of killed processes: they are billed, and no listing shows them."""
    for prefix in UPLOADED:
        num = ledger.store.abort_uploads(prefix, older_s=UPLOAD_S)
        if num:
            log.info("uploads.aborted", prefix=prefix, num=num)


_SWEEPS: tuple[Callable[[Ledger], object], ...] = (sweep_heartbeats, sweep_idempotency, retention.sweep, _abort_uploads)


class Janitor:
    """For one thread. `runner` names this process where it assembles; `reader` may be shared with others.

    With `inbox` it creates batches from the files there. `on_ended` is called once for every ended batch, no matter
    which process ended it and when. `defer` may take over long work: planning or ending a large batch. Remembers when
    each batch of the index is due again: an open one at the next tick, an ended or deleted one when its time comes,
    and no later than `RELOOK_S`. Irreversible steps depend on the store's clock: the local clock may be wrong, and
    only decides when to look.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        runner: str,
        reader: StatusReader | None = None,
        on_ended: Callable[[BatchRecord], None] = lambda batch: None,
        defer: Callable[[BatchRecord], bool] = lambda batch: False,
        inbox: Inbox | None = None,
        aside: SetAside | None = None,
    ) -> None:
        self._ledger = ledger
        self._aside = aside or SetAside(ledger)
        self._runner = runner
        self._reader = reader or StatusReader(ledger)
        self._on_ended = on_ended
        self._defer = defer
        self._inbox = inbox
        self._due: dict[str, float] = {}  # monotonic
        self._ended: set[str] = set()  # that were seen to have ended
        self._swept_at = float("-inf")
        self._queues: dict[str, set[str]] = {}  # pool -> the keys of its queue, as they were listed in this tick

    def run(self, stop: threading.Event) -> None:
        """A tick every `TICK_S` until `stop`, harmless in any number of processes. Waits for a store that is down."""
        while not stop.is_set():
            try:
                with self._ledger.store.hold_process_lock(self._runner):
                    self._run(stop)
            except StoreError as error:
                log.warning("janitor.paused", error=str(error))
                stop.wait(TICK_S)

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(TICK_S):
            try:
                self.tick()
            except StoreError as error:
                log.warning("janitor.paused", error=str(error))
            except Exception:  # the top of this thread
                log.exception("janitor.failed")

    def tick(self) -> None:
        """Look at every batch that is due. An error of one batch is logged and does not delay the others.

        Raises: StoreError where the store does not answer at all; the next tick continues.
        """
        now = self._ledger.clock.monotonic()
        self._queues.clear()
        give_back_owed(self._ledger)
        if self._inbox is not None:
            with _harmless("inbox.failed"):
                self._inbox.look(self._aside)
        due = sorted(self._list_due(now))
        num_unanswered = 0
        for _, batch_id, key in due[:LOOKS_MAX]:
            try:
                self._due[batch_id] = now + self._look_at(batch_id, key)
                self._aside.worked(batch_id, "end")
                num_unanswered = 0
            except BatchDamaged as error:
                log.error("batch.damaged", batch_id=batch_id, error=str(error))
                self._due[batch_id] = now + DAMAGED_S
                with suppress(BatchDamaged):  # raised for a process with a single batch: its claims report it
                    self._aside.put(batch_id, "end", error)
            except StoreError as error:  # perhaps of this batch alone: the others do not wait for it
                self._due[batch_id] = now + self._aside.put(batch_id, "end", error)
                num_unanswered = num_unanswered + 1 if isinstance(error, StoreUnavailable) else 0
                if num_unanswered == UNANSWERED_MAX:
                    raise
            except Exception:  # for example an unforeseen kind of file: it must not end every runner in turn
                log.exception("batch.stuck", batch_id=batch_id)
                self._due[batch_id] = now + STUCK_S
        if now - self._swept_at >= SWEEP_S:
            for sweep in _SWEEPS:
                with _harmless("sweep.failed"):
                    sweep(self._ledger)
            if self._inbox is not None:
                with _harmless("inbox.failed"):
                    self._inbox.sweep()
            self._swept_at = now

    def _list_due(self, now: float) -> list[tuple[float, str, str]]:
        """Since when each batch is due, its id, and its key in the index. Forgets batches that left the index."""
        due: dict[str, float] = {}
        found = []
        for entry in self._ledger.store.list(keys.INDEX_PREFIX):
            batch_id = keys.index_batch_id(entry.key)
            at = due[batch_id] = self._due.get(batch_id, now)
            if at <= now:
                found.append((at, batch_id, entry.key))
        self._due = due
        self._ended &= due.keys()
        return found

    def _look_at(self, batch_id: str, index_key: str) -> float:
        """Do what is due for one batch. Returns in how many seconds to look again."""
        found = self._reader.read(batch_id)
        if found is None:
            return self._look_at_remains(batch_id, index_key)
        batch = found.batch
        if batch.state != "ended":
            ended = self._move_on(found)
            if ended is None or ended.state != "ended":
                self._notify(ended or batch, found.status)
                return 0.0
            batch = ended
        if batch_id not in self._ended:
            self._ended.add(batch_id)
            self._on_ended(batch)
        is_notified = self._notify(batch, found.status)
        left_s = retention.kept_for_s(self._ledger, batch)
        if left_s > 0:
            return min(left_s, RELOOK_S) if is_notified else 0.0
        retention.delete(self._ledger, batch_id)
        return self._ledger.limits.download_grace_s

    def _notify(self, batch: BatchRecord, status: BatchStatus) -> bool:
        """Update the outbox. False: another process is writing it, and may die."""
        try:
            if batch.state == "ended":
                return outbox.publish(self._ledger, batch, runner=self._runner)
            outbox.report(self._ledger, batch, status.counts, status.usage)
        except StoreUnavailable:
            raise
        except StoreError as error:  # for example a name that is too long; the results are kept with the batch
            log.error("outbox.failed", batch_id=batch.batch_id, error=str(error))
        return True

    def _move_on(self, found: BatchSnapshot) -> BatchRecord | None:
        """Plan, expire or end the batch if that is due; else make sure that runners find it. The record if it ended."""
        batch, ledger = found.batch, self._ledger
        if batch.state == "planning":
            if self._defer(batch):
                return None
            return pending.plan(ledger, batch.batch_id, runner=self._runner)
        if batch.state == "open" and retention.is_over(ledger, batch):
            batches.end(ledger, batch.batch_id, "expired")
        elif batch.state == "open" and outbox.is_replaced(ledger, batch):
            batches.end(ledger, batch.batch_id, "input_changed", "the file in the inbox was replaced or removed")
        elif found.is_running:
            self._repair_queue(found)
            return None
        return None if self._defer(batch) else outbox.finish(ledger, batch.batch_id, runner=self._runner)

    def _repair_queue(self, found: BatchSnapshot) -> None:
        """Restore missing queue entries: without one, a pool would never start its work."""
        batch, store = found.batch, self._ledger.store
        lost = []
        for pool, progress in found.status.pools.items():
            if progress.num_done == progress.num_shards:
                continue
            if pool not in self._queues:
                self._queues[pool] = {entry.key for entry in store.list(keys.queue_prefix(pool))}
            key = keys.queue_key(pool, batch.priority, batch.created_at, batch.batch_id)
            if key not in self._queues[pool]:
                store.put(key, b"")
                lost.append(pool)
        if lost:
            log.warning("queue.restored", batch_id=batch.batch_id, pools=lost)
            batches.notify(self._ledger, lost)

    def _look_at_remains(self, batch_id: str, index_key: str) -> float:
        """Clean up after a deleted batch, or after a create that was not (or not yet) committed.

        Ages are by the store's clock: with a wrong local one, a slow create could outlive the tombstone that fences it.
        """
        ledger, limits = self._ledger, self._ledger.limits
        found = load(ledger, keys.batch_key(batch_id), BatchRecord)
        if found is None:
            self._sweep_abandoned(batch_id, index_key)
            return 0.0
        batch = found.record
        if batch.deleted_at is None:  # it was created, or restored, since we looked
            return 0.0
        if found.age_s < limits.download_grace_s:
            return limits.download_grace_s - found.age_s
        must_know(ledger, keys.batch_key(batch_id), found)
        retention.remove_objects(ledger, batch)
        if found.age_s >= limits.tombstone_s:
            retention.remove_tombstone(ledger, batch)
        return max(limits.tombstone_s - found.age_s, 0.0)

    def _sweep_abandoned(self, batch_id: str, index_key: str) -> None:
        """A create that was cut off before its commit: fenced by a tombstone first, then swept with it."""
        entry = self._ledger.store.get(index_key)
        # None: another janitor has just removed it.
        if entry is None or entry.age_s < self._ledger.limits.abandoned_s:
            return
        if retention.fence_abandoned(self._ledger, batch_id):
            log.info("create.abandoned", batch_id=batch_id)
            self._ledger.store.delete(index_key)


@contextmanager
def _harmless(event: str) -> Iterator[None]:
    """Log errors, so that unexpected objects in the store do not stop other work."""
    try:
        yield
    except BatchfileError as error:
        log.error(event, error=str(error))
    except Exception:
        log.exception(event)
