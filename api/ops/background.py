"""Plans and ends batches in the background, so that requests need not wait for it.

If the process dies before the work is done, the janitor of any process does it.
"""

import queue
import threading
from collections.abc import Callable

import structlog

from batchfile.errors import BatchDamaged, StoreError
from batchfile.inbox import outbox
from batchfile.ledger import batches
from batchfile.ledger.base import Ledger
from batchfile.ledger.records import BatchRecord
from batchfile.plan import pending

log = structlog.get_logger()

THREADS = 2


class BackgroundTasks:
    """`runner`: the name of this process. Its threads end with it. `on_ended`: called for batches that end here.

    `defer` takes over long work, so that canceling a small batch never waits for a large one to be planned.
    """

    def __init__(
        self,
        ledger: Ledger,
        runner: str,
        on_ended: Callable[[BatchRecord], None],
        defer: Callable[[BatchRecord], bool] = lambda batch: False,
    ) -> None:
        self._ledger = ledger
        self._runner = runner
        self._on_ended = on_ended
        self._defer = defer
        self._wanted: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def start(self) -> None:
        for _ in range(THREADS):
            threading.Thread(target=self._run, name="background", daemon=True).start()

    def stop(self) -> None:
        for _ in range(THREADS):
            self._wanted.put(None)

    def wake(self, batch_id: str) -> None:
        """Do the pending work on this batch soon."""
        self._wanted.put(batch_id)

    def _run(self) -> None:
        while (batch_id := self._wanted.get()) is not None:
            try:
                batch = batches.read_batch(self._ledger, batch_id)
                if batch is not None and (batch.state == "planning" or _is_to_end(batch)) and self._defer(batch):
                    continue
                if batch is not None and batch.state == "planning":
                    batch = pending.plan(self._ledger, batch_id, runner=self._runner)
                if batch is not None and _is_to_end(batch):
                    batch = outbox.finish(self._ledger, batch_id, runner=self._runner)
                if batch is not None and batch.state == "ended":
                    self._on_ended(batch)
            except (StoreError, BatchDamaged) as error:
                log.warning("background.left_to_janitor", batch_id=batch_id, error=str(error))
            except Exception:  # the top of this thread
                log.exception("background.failed", batch_id=batch_id)


def _is_to_end(batch: BatchRecord) -> bool:
    """Is it ending, or was every one of its results reused, so that no runner works on it?"""
    return batch.state == "ending" or (batch.state == "open" and batch.is_all_reused)
