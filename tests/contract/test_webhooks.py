"""How the end of a batch is told: at least once, in a schedule that outlives processes, the same event each time."""

import json
import random

import pytest

from batchfile import Ledger
from batchfile.testing import ManualClock, MemoryStore
from batchfile.types import Defaults, RoutingTable
from tests.helpers.ledger import BatchRecord, EndReason, InputRef, batches, keys, retention
from tests.helpers.service import BACKOFF_S, Event, deliver, event_of, webhooks


class World:
    """One batch `b` that has ended, and a receiver that answers `answers` in turn, then always takes it."""

    def __init__(self, reason: EndReason = "completed") -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock)
        self.ledger = Ledger(store=self.store, clock=self.clock, rng=random.Random(7))
        self.sent: list[Event] = []
        self.answers: list[str | None] = []
        now = self.clock.now()
        self.batch = BatchRecord(
            batch_id="b",
            created_at=now,
            expires_at=now,
            input=InputRef(key="k", etag="e", size=0, sha256="", format="openai"),
            plan_key="",
            total=0,
            routing=RoutingTable(),
            defaults=Defaults(),
            state="ended",
            reason=reason,
            ended_at=now + 0.9,
            tenant="acme",
            write_id="w",
        )
        batches.swap(self.ledger, keys.batch_key("b"), self.batch, None)

    def send(self, event: Event) -> str | None:
        self.sent.append(event)
        return self.answers.pop(0) if self.answers else None

    def tell(self) -> float | None:
        return deliver(self.ledger, "b", self.send)


def test_an_event_that_was_taken_is_not_sent_again() -> None:
    world = World()
    assert world.tell() is None
    assert world.tell() is None
    assert len(world.sent) == 1


def test_events_have_openais_names_and_are_the_same_for_one_batch() -> None:
    names: dict[EndReason, str] = {
        "completed": "batch.completed",
        "canceled": "batch.cancelled",
        "expired": "batch.expired",
        "failed": "batch.failed",
        "input_changed": "batch.failed",
    }
    for reason, name in names.items():
        batch = World(reason).batch
        event = event_of(batch)
        assert event == event_of(batch)
        document = json.loads(event.body)
        assert document == {
            "id": event.event_id,
            "object": "event",
            "type": name,
            "created_at": int(batch.ended_at or 0),
            "data": {"id": "b"},
        }


def test_a_receiver_that_fails_is_asked_again_later_and_later_and_then_given_up() -> None:
    world = World()
    world.answers = ["answered 500"] * 20
    waits = []
    while (again := world.tell()) is not None:
        waits.append(again - world.clock.now())
        assert world.tell() == again
        world.clock.sleep(again - world.clock.now())
    assert waits == list(BACKOFF_S)
    assert len(world.sent) == len(BACKOFF_S)
    assert world.tell() is None


def test_another_process_goes_on_where_one_died_in_an_attempt() -> None:
    world = World()

    def die(event: Event) -> str | None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deliver(world.ledger, "b", die)
    again = world.tell()
    assert again == world.clock.now() + BACKOFF_S[0]
    assert world.sent == []
    world.clock.sleep(BACKOFF_S[0])
    assert world.tell() is None
    assert len(world.sent) == 1


@pytest.mark.parametrize("wrong_by_s", [40 * 86400.0, -40 * 86400.0])
def test_a_process_with_a_wrong_clock_neither_delays_nor_hurries_the_next_attempt(wrong_by_s: float) -> None:
    world = World()
    world.answers = ["answered 500"]
    wrong = ManualClock(world.clock.now() + wrong_by_s)
    deliver(Ledger(store=world.store, clock=wrong, rng=random.Random(8)), "b", world.send)
    assert world.tell() == world.clock.now() + BACKOFF_S[0]
    assert len(world.sent) == 1
    world.clock.sleep(BACKOFF_S[0])
    assert world.tell() is None
    assert len(world.sent) == 2


def test_of_two_processes_at_the_same_time_one_sends() -> None:
    world = World()
    inner: list[float | None] = []

    def send(event: Event) -> str | None:
        inner.append(world.tell())
        return world.send(event)

    assert deliver(world.ledger, "b", send) is None
    assert inner == [world.clock.now() + BACKOFF_S[0]]
    assert len(world.sent) == 1


def test_of_a_deleted_batch_nothing_is_told_and_nothing_is_written() -> None:
    world = World()
    retention.delete(world.ledger, "b")
    assert world.tell() is None
    assert world.sent == []
    assert [entry.key for entry in world.store.list(keys.batch_prefix("b"))] == [keys.batch_key("b")]


def test_a_signature_is_what_the_standard_says() -> None:
    """The example of the Standard Webhooks specification's own libraries."""
    event = Event(event_id="msg_p5jXN8AQM9LWM0D4loKWxJek", type="t", body=b'{"test": 2432232314}')
    headers = webhooks.signed_headers(event, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", 1614265330.0)
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
