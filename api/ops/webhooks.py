"""Delivers webhooks when a batch ends, following Standard Webhooks, with OpenAI's event names.

The state of a delivery is stored next to the batch, so that any process resumes it after another one died. Each attempt
is recorded before it is made, with the time of the next one: delivery is at least once, and rarely twice. A receiver
gets at most two attempts at a time, so that one that hangs does not delay the others.
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
from batchfile.ledger.base import Ledger
from batchfile.ledger.batches import read_batch
from batchfile.ledger.cas import Lost, Stored, load, swap
from batchfile.ledger.keys import batch_prefix
from batchfile.ledger.records import VERSION, BatchRecord, EndReason
from batchfile.ledger.set_aside import PAUSE_S_MAX, SetAside
from batchfile.settings_tables import Webhook

from . import safe_post

log = structlog.get_logger()

WebhookState = Literal["pending", "delivered", "given_up"]
WebhookOutcome = Literal["delivered", "failed", "given_up"]  # of an attempt

# The wait after each attempt, in seconds; after the last one the delivery is abandoned.
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
    """The state of a delivery. `num_attempts`: begun so far. `next_at`: when the next is due, by the clock of the
    process that wrote it; other processes use the age of this record instead.
    """

    num_attempts: int
    next_at: float
    state: WebhookState = "pending"
    write_id: str = ""
    version: int = VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """The payload: always the same bytes for a batch. `event_id` lets the receiver detect duplicates."""

    event_id: str
    type: str
    body: bytes


def event_of(batch: BatchRecord) -> Event:
    """The event of an ended batch; with the `path` of its inbox file, if it has one."""
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
    """The headers of Standard Webhooks, version 1. `secret`: base64 after `whsec_`; None: no signature.

    `now`: the time of this attempt, in epoch seconds.
    """
    sent_at = int(now)
    named = {"webhook-id": event.event_id, "webhook-timestamp": str(sent_at)}
    if secret is None:
        return named
    signed = b"%s.%d.%s" % (event.event_id.encode(), sent_at, event.body)
    digest = hmac.digest(base64.b64decode(secret.removeprefix(SECRET_PREFIX)), signed, hashlib.sha256)
    return {**named, "webhook-signature": f"v1,{base64.b64encode(digest).decode()}"}


def deliver(
    ledger: Ledger,
    batch_id: str,
    send: Callable[[Event], str | None],
    count: Callable[[WebhookOutcome], None] = lambda outcome: None,
) -> float | None:
    """Make an attempt if one is due. Returns when to call again (epoch seconds); None: delivered, abandoned, or the
    batch is gone.

    `send` returns None if the receiver accepted the event, otherwise what went wrong. `count` is told how it went.
    Raises: StoreUnavailable.
    """
    batch = read_batch(ledger, batch_id)
    if batch is None or batch.state != "ended":
        return None
    key = webhook_key(batch_id)
    found = load(ledger, key, WebhookRecord)
    now = ledger.clock.now()
    known = WebhookRecord(num_attempts=0, next_at=now) if found is None else found.record
    left_s = 0.0 if found is None else _left_s(found)
    if known.state != "pending" or left_s > 0:
        return now + left_s if known.state == "pending" else None
    if known.num_attempts == len(BACKOFF_S):
        log.error("webhook.given_up", batch_id=batch_id, attempts=known.num_attempts)
        count("given_up")
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
    count("delivered" if problem is None else "failed")
    if problem is not None:
        log.warning("webhook.failed", batch_id=batch_id, event_id=event.event_id, error=problem)
        return begun.next_at
    swap(ledger, key, replace(begun, state="delivered", write_id=ledger.new_id()), claimed)
    log.info("webhook.delivered", batch_id=batch_id, event_id=event.event_id, type=event.type)
    return None


def _left_s(found: Stored[WebhookRecord]) -> float:
    """Seconds until the next attempt, by the store's clock: the clock of the last process may have been wrong."""
    num = found.record.num_attempts
    return max(0.0, BACKOFF_S[num - 1] - found.age_s) if num else 0.0


AT_ONCE = 16
AT_RECEIVER = 2  # to one receiver
LOOK_S = 0.5


class _Due(NamedTuple):
    at: float
    batch_id: str
    tenant: str
    callback: str


class _Receiver(NamedTuple):
    """One per tenant, so that tenants of one server do not wait for each other. `host` may have a port."""

    tenant: str
    host: str


@dataclass(slots=True)
class _Lane:
    """The due deliveries of one receiver, in order, and its number of attempts in progress."""

    waiting: deque[_Due] = field(default_factory=deque)
    num_busy: int = 0


class WebhookSender:
    """`hooks`: by tenant. A batch's own callback overrides its tenant's URL, and is signed with the tenant's secret.

    A batch is set aside, for increasing times, if the store rejects or damages its records.
    """

    def __init__(
        self,
        ledger: Ledger,
        hooks: Mapping[str, Webhook],
        aside: SetAside | None = None,
        count: Callable[[WebhookOutcome], None] = lambda outcome: None,
    ) -> None:
        self._ledger = ledger
        self._count = count
        self._aside = aside or SetAside(ledger)
        self._hooks = hooks
        self._news: queue.SimpleQueue[_Due | _Receiver] = queue.SimpleQueue()  # a receiver: one of its attempts is over

    def on_ended(self, batch: BatchRecord) -> None:
        """Queue the delivery of an ended batch. May be called several times for one batch."""
        dropped = dropped_file(batch)
        callback = (dropped and dropped.callback) or ""
        if callback or batch.tenant in self._hooks:
            self._news.put(_Due(0.0, batch.batch_id, batch.tenant, callback))

    def run(self, stop: threading.Event) -> None:
        """Run until `stop`. Another process repeats attempts that are then in progress."""
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
        """All news; waits for the first."""
        with suppress(queue.Empty):
            yield self._news.get(timeout=LOOK_S)
            while True:
                yield self._news.get_nowait()

    def _deliver(self, receiver: _Receiver, due: _Due) -> None:
        wait_s = self._attempt(due)
        if wait_s is not None:  # by the monotonic clock, which is never set back
            self._news.put(due._replace(at=self._ledger.clock.monotonic() + wait_s))
        self._news.put(receiver)

    def _attempt(self, due: _Due) -> float | None:
        """Seconds until the next attempt, if any."""
        try:
            again = deliver(self._ledger, due.batch_id, partial(self._send, due), self._count)
            self._aside.worked(due.batch_id, "webhook")
            return None if again is None else max(0.0, again - self._ledger.clock.now())
        except (StoreError, BatchDamaged) as error:
            return self._set_aside(due.batch_id, error)
        except Exception:  # the top of this thread
            log.exception("webhook.crashed", batch_id=due.batch_id)
            return None

    def _set_aside(self, batch_id: str, error: BatchfileError) -> float:
        """Returns for how many seconds."""
        try:
            return self._aside.put(batch_id, "webhook", error)
        except BatchfileError:  # the store is full, which affects every batch
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


def webhook_key(batch_id: str) -> str:
    """Under the batch's prefix, so that it is deleted with the batch."""
    return f"{batch_prefix(batch_id)}webhook.json"
