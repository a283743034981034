"""Webhooks: telling a tenant's own server that a batch has ended. Standard Webhooks, with OpenAI's names of the events.

How far the telling is stands in the store, next to the batch, so that any process resumes where another one died. A
process writes before an attempt when the next one is due: the event comes at least once, and seldom twice. What is due
for one receiver is told two at a time, so that one that hangs holds up nobody else; only many that hang at once do, for
as long as an attempt lasts.
"""

import base64
import hashlib
import heapq
import hmac
import queue
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, NamedTuple

import msgspec
import structlog

from batchfile.errors import BatchDamaged, BatchfileError, StoreError
from batchfile.inbox.records import dropped_file, inbox_path
from batchfile.ledger import keys
from batchfile.ledger.base import Ledger
from batchfile.ledger.batches import read_batch
from batchfile.ledger.cas import Lost, Stored, load, swap
from batchfile.ledger.records import VERSION, BatchRecord, EndReason
from batchfile.ledger.set_aside import PAUSE_S_MAX, SetAside
from batchfile.settings_tables import Webhook

from . import safe_post

log = structlog.get_logger()

WebhookState = Literal["pending", "delivered", "given_up"]

# After each attempt the wait for the next one, in seconds; after the last one it is given up.
BACKOFF_S = (30.0, 300.0, 1800.0, 7200.0, 18000.0, 60.0)
SECRET_PREFIX = "whsec_"

_EVENTS: dict[EndReason, str] = {
    "completed": "batch.completed",
    "canceled": "batch.cancelled",
    "expired": "batch.expired",
    "failed": "batch.failed",
    "input_changed": "batch.failed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookRecord:
    """How far the telling of a batch's end is. `num_attempts` were begun. The next is due at `next_at`, by the clock of
    whoever wrote it: others go by the age of this record instead.
    """

    num_attempts: int
    next_at: float
    state: WebhookState = "pending"
    write_id: str = ""
    version: int = VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What is sent: always the same bytes for one batch. `event_id` lets the receiver know a repetition."""

    event_id: str
    type: str
    body: bytes


def event_of(batch: BatchRecord) -> Event:
    """Of an ended batch; with the `path` of the dropped file that it was made of, if it was."""
    path = inbox_path(batch)
    kind = _EVENTS[batch.reason or "completed"]
    event_id = f"evt_{hashlib.sha256(f'{batch.batch_id} {kind}'.encode()).hexdigest()[:32]}"
    document = {
        "id": event_id,
        "object": "event",
        "type": kind,
        "created_at": int(batch.ended_at or batch.created_at),
        "data": {"id": batch.batch_id} if path is None else {"id": batch.batch_id, "path": path},
    }
    return Event(event_id=event_id, type=kind, body=msgspec.json.encode(document))


def signed_headers(event: Event, secret: str | None, now: float) -> dict[str, str]:
    """Standard Webhooks, version 1. `secret`: base64 after `whsec_`; None: there is no signature.

    `now`: epoch seconds, of this attempt.
    """
    sent_at = int(now)
    named = {"webhook-id": event.event_id, "webhook-timestamp": str(sent_at)}
    if secret is None:
        return named
    signed = b"%s.%d.%s" % (event.event_id.encode(), sent_at, event.body)
    digest = hmac.digest(base64.b64decode(secret.removeprefix(SECRET_PREFIX)), signed, hashlib.sha256)
    return {**named, "webhook-signature": f"v1,{base64.b64encode(digest).decode()}"}


def deliver(ledger: Ledger, batch_id: str, send: Callable[[Event], str | None]) -> float | None:
    """Make an attempt if one is due. When to come again (epoch seconds); None: done, given up, or the batch is gone.

    `send` gives None where the receiver took it, else what went wrong. Raises: StoreUnavailable.
    """
    batch = read_batch(ledger, batch_id)
    if batch is None or batch.state != "ended":
        return None
    key = keys.webhook_key(batch_id)
    found = load(ledger, key, WebhookRecord)
    now = ledger.clock.now()
    known = WebhookRecord(num_attempts=0, next_at=now) if found is None else found.record
    left_s = 0.0 if found is None else _left_s(found)
    if known.state != "pending" or left_s > 0:
        return now + left_s if known.state == "pending" else None
    if known.num_attempts == len(BACKOFF_S):
        log.error("webhook.given_up", batch_id=batch_id, attempts=known.num_attempts)
        swap(ledger, key, replace(known, state="given_up", write_id=ledger.new_id()), found)
        return None
    begun = WebhookRecord(
        num_attempts=known.num_attempts + 1,
        next_at=now + BACKOFF_S[known.num_attempts],
        write_id=ledger.new_id(),
    )
    claimed = swap(ledger, key, begun, found)
    if isinstance(claimed, Lost):
        return None if claimed.found is None else now + _left_s(claimed.found)
    event = event_of(batch)
    problem = send(event)
    if problem is not None:
        log.warning("webhook.failed", batch_id=batch_id, event_id=event.event_id, error=problem)
        return begun.next_at
    swap(ledger, key, replace(begun, state="delivered", write_id=ledger.new_id()), claimed)
    log.info("webhook.delivered", batch_id=batch_id, event_id=event.event_id, type=event.type)
    return None


def _left_s(found: Stored[WebhookRecord]) -> float:
    """Until the next attempt. By the store's clock: the process that made the last one may have had a wrong one."""
    num = found.record.num_attempts
    return max(0.0, BACKOFF_S[num - 1] - found.age_s) if num else 0.0


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

    def on_ended(self, batch: BatchRecord) -> None:
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
                        senders.submit(self._deliver, receiver, lane.waiting.popleft())
                    if lane.num_busy == 0:
                        del lanes[receiver]
                for news in self._get_news():
                    if isinstance(news, _Due):
                        heapq.heappush(later, news)
                    else:
                        lanes[news].num_busy -= 1
            senders.shutdown(wait=False, cancel_futures=True)

    def _get_news(self) -> Iterator[_Due | _Receiver]:
        """All there is; the first of it is waited for."""
        with suppress(queue.Empty):
            yield self._news.get(timeout=LOOK_S)
            while True:
                yield self._news.get_nowait()

    def _deliver(self, receiver: _Receiver, due: _Due) -> None:
        wait_s = self._attempt(due)
        if wait_s is not None:  # by a clock that nobody sets back
            self._news.put(due._replace(at=self._ledger.clock.monotonic() + wait_s))
        self._news.put(receiver)

    def _attempt(self, due: _Due) -> float | None:
        """In how many seconds to come again, if at all."""
        try:
            again = deliver(self._ledger, due.batch_id, partial(self._send, due))
            self._aside.worked(due.batch_id, "webhook")
            return None if again is None else max(0.0, again - self._ledger.clock.now())
        except (StoreError, BatchDamaged) as error:
            return self._set_aside(due.batch_id, error)
        except Exception:  # the top of this thread
            log.exception("webhook.crashed", batch_id=due.batch_id)
            return None

    def _set_aside(self, batch_id: str, error: BatchfileError) -> float:
        """For how many seconds."""
        try:
            return self._aside.put(batch_id, "webhook", error)
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
