"""Telling a tenant's own server that a batch has ended: Standard Webhooks, with OpenAI's names of the events.

How far the telling is stands beside the batch, so that any process goes on where another one died. Whoever makes an
attempt writes first when the next one is due: the event comes at least once, and seldom twice. Knows no HTTP.
"""

import base64
import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import msgspec
import structlog

from batchfile.ledger import keys
from batchfile.ledger.base import Ledger
from batchfile.ledger.batches import read_batch
from batchfile.ledger.cas import Lost, Stored, load, swap
from batchfile.ledger.records import VERSION, BatchRecord, EndReason

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


def event_of(batch: BatchRecord, path: str | None) -> Event:
    """Of an ended batch. `path`: of the file that it was made of, where its receiver knows one."""
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


def tell(
    ledger: Ledger,
    batch_id: str,
    send: Callable[[Event], str | None],
    path_of: Callable[[BatchRecord], str | None] = lambda batch: None,
) -> float | None:
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
    event = event_of(batch, path_of(batch))
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
