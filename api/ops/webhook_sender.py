"""The sender of webhooks of an API process: hears which batches have ended, and tells their tenants' servers.

What is done stands in the store; this process only remembers what it must look at again, and when. What is due for
one receiver is told two at a time, so that one that hangs holds up nobody else; only many that hang at once do, for
as long as an attempt lasts.
"""

import heapq
import queue
import threading
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import structlog

from batchfile.errors import BatchDamaged, BatchfileError, StoreError
from batchfile.inbox.records import dropped_file, inbox_path
from batchfile.ledger.base import Ledger
from batchfile.ledger.records import BatchRecord
from batchfile.ledger.set_aside import PAUSE_S_MAX, SetAside
from batchfile.settings_tables import Webhook
from batchfile.webhooks import Event, signed_headers, tell

from . import safe_post

log = structlog.get_logger()

AT_ONCE = 16
AT_RECEIVER = 2  # of them
LOOK_S = 0.5


class _Due(NamedTuple):
    at: float
    batch_id: str
    tenant: str
    callback: str


class _Receiver(NamedTuple):
    """A tenant's own, because two tenants of one server do not wait for each other. `host` may have a port."""

    tenant: str
    host: str


@dataclass(slots=True)
class _Lane:
    """What is due for one receiver, in that order, and how many attempts are in work there."""

    waiting: deque[_Due] = field(default_factory=deque)
    num_busy: int = 0


class WebhookSender:
    """`hooks`: by tenant. A batch's own callback overrides its tenant's address, and is signed with its secret.

    What the store refuses, or has of an attempt in damaged form, is set aside, for a while that grows.
    """

    def __init__(self, ledger: Ledger, hooks: Mapping[str, Webhook], aside: SetAside | None = None) -> None:
        self._ledger = ledger
        self._aside = aside or SetAside(ledger)
        self._hooks = hooks
        self._news: queue.SimpleQueue[_Due | _Receiver] = queue.SimpleQueue()  # a receiver: one attempt there is over

    def hear(self, batch: BatchRecord) -> None:
        """Of an ended batch, perhaps not for the first time."""
        dropped = dropped_file(batch)
        callback = (dropped and dropped.callback) or ""
        if callback or batch.tenant in self._hooks:
            self._news.put(_Due(0.0, batch.batch_id, batch.tenant, callback))

    def run(self, stop: threading.Event) -> None:
        """Until `stop`. Attempts in work then are made again by another process."""
        later: list[_Due] = []  # a heap
        lanes: defaultdict[_Receiver, _Lane] = defaultdict(_Lane)
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="webhook") as senders:
            while not stop.is_set():
                while later and later[0].at <= self._ledger.clock.monotonic():
                    due = heapq.heappop(later)
                    lanes[self._receiver(due)].waiting.append(due)
                for receiver, lane in list(lanes.items()):
                    while lane.waiting and lane.num_busy < AT_RECEIVER:
                        lane.num_busy += 1
                        senders.submit(self._tell, receiver, lane.waiting.popleft())
                    if lane.num_busy == 0:
                        del lanes[receiver]
                for news in self._hear_news():
                    if isinstance(news, _Due):
                        heapq.heappush(later, news)
                    else:
                        lanes[news].num_busy -= 1
            senders.shutdown(wait=False, cancel_futures=True)

    def _hear_news(self) -> Iterator[_Due | _Receiver]:
        """All there is; the first of it is waited for."""
        with suppress(queue.Empty):
            yield self._news.get(timeout=LOOK_S)
            while True:
                yield self._news.get_nowait()

    def _tell(self, receiver: _Receiver, due: _Due) -> None:
        wait_s = self._attempt(due)
        if wait_s is not None:  # by a clock that nobody sets back
            self._news.put(due._replace(at=self._ledger.clock.monotonic() + wait_s))
        self._news.put(receiver)

    def _attempt(self, due: _Due) -> float | None:
        """In how many seconds to come again, if at all."""
        try:
            again = tell(self._ledger, due.batch_id, partial(self._send, due), inbox_path)
            self._aside.worked(due.batch_id, "tell")
            return None if again is None else max(0.0, again - self._ledger.clock.now())
        except (StoreError, BatchDamaged) as error:
            return self._set_aside(due.batch_id, error)
        except Exception:  # the top of this thread
            log.exception("webhook.crashed", batch_id=due.batch_id)
            return None

    def _set_aside(self, batch_id: str, error: BatchfileError) -> float:
        """For how many seconds."""
        try:
            return self._aside.put(batch_id, "tell", error)
        except BatchfileError:  # there is no room, for any batch
            log.warning("webhook.paused", batch_id=batch_id, error=str(error))
            return PAUSE_S_MAX

    def _receiver(self, due: _Due) -> _Receiver:
        return _Receiver(due.tenant, self._url(due).split("/", 3)[2].lower())

    def _url(self, due: _Due) -> str:
        hook = self._hooks.get(due.tenant)
        return due.callback or (hook.url if hook else "")

    def _send(self, due: _Due, event: Event) -> str | None:
        hook = self._hooks.get(due.tenant)
        secret = None if hook is None else hook.secret.get_secret_value()
        headers = signed_headers(event, secret, self._ledger.clock.now())
        return safe_post.post(
            self._url(due), event.body, headers, allow_private=hook is not None and hook.allow_private
        )
