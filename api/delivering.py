"""The sender of webhooks of an API process: hears which batches have ended, and tells their tenants' servers.

What is done stands in the store; this process only remembers what it must look at again, and when.
"""

import heapq
import queue
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import structlog

from api import posting
from batchfile.errors import BatchDamaged, StoreError
from batchfile.ledger.base import Ledger
from batchfile.ledger.webhooks import Event, signed_headers, tell
from batchfile.records import BatchRecord
from batchfile.settings_tables import Webhook

log = structlog.get_logger()

AT_ONCE = 4  # so that one server that hangs holds up no other
LOOK_S = 0.5
RETRY_S = 15.0  # where the store does not answer


class _Due(NamedTuple):
    at: float
    batch_id: str
    tenant: str
    callback: str


class Delivering:
    """`hooks`: by tenant. A batch's own callback stands over its tenant's address, and is signed with its secret."""

    def __init__(self, ledger: Ledger, hooks: Mapping[str, Webhook]) -> None:
        self._ledger = ledger
        self._hooks = hooks
        self._heard: queue.SimpleQueue[_Due] = queue.SimpleQueue()

    def hear(self, batch: BatchRecord) -> None:
        """Of an ended batch, perhaps not for the first time."""
        callback = (batch.dropped and batch.dropped.callback) or ""
        if callback or batch.tenant in self._hooks:
            self._heard.put(_Due(0.0, batch.batch_id, batch.tenant, callback))

    def run(self, stop: threading.Event) -> None:
        """Until `stop`. Attempts in work then are made again by another process."""
        waiting: list[_Due] = []
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="webhook") as senders:
            while not stop.wait(LOOK_S):
                while not self._heard.empty():
                    heapq.heappush(waiting, self._heard.get())
                while waiting and waiting[0].at <= self._ledger.clock.now():
                    senders.submit(self._tell, heapq.heappop(waiting))
            senders.shutdown(wait=False, cancel_futures=True)

    def _tell(self, due: _Due) -> None:
        again: float | None
        try:
            again = tell(self._ledger, due.batch_id, partial(self._send, due))
        except (StoreError, BatchDamaged) as error:
            log.warning("webhook.paused", batch_id=due.batch_id, error=str(error))
            again = self._ledger.clock.now() + RETRY_S
        except Exception:  # the top of this thread
            log.exception("webhook.crashed", batch_id=due.batch_id)
            return
        if again is not None:
            self._heard.put(due._replace(at=again))

    def _send(self, due: _Due, event: Event) -> str | None:
        hook = self._hooks.get(due.tenant)
        secret = None if hook is None else hook.secret.get_secret_value()
        headers = signed_headers(event, secret, self._ledger.clock.now())
        url = due.callback or (hook.url if hook else "")
        return posting.post(url, event.body, headers, allow_private=hook is not None and hook.allow_private)
