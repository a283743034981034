"""Creates that take long, and creates that several attempts make at once."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from batchfile import Ledger
from batchfile.errors import BatchDamaged, TooLarge
from batchfile.testing import ManualClock, MemoryStore
from batchfile.types import Defaults, RoutingTable
from tests.helpers.inbox import Janitor
from tests.helpers.ledger import BatchRecord, Draft, KeyedBatch, batches, idempotency
from tests.helpers.ledger import keys as ledger_keys
from tests.helpers.plan import REJECT, submit

TENANT = "acme"


def line(custom_id: str) -> bytes:
    params = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    return json.dumps({"custom_id": custom_id, "params": params}).encode() + b"\n"


class SlowToRead(MemoryStore):
    """`pause` is called before each chunk of an input that is read."""

    pause: Callable[[], None] = staticmethod(lambda: None)

    def stream(self, key: str, start: int = 0, end: int | None = None, *, match: str | None = None) -> Iterator[bytes]:
        data = b"".join(super().stream(key, start, end, match=match))
        for at in range(0, len(data), 100):
            self.pause()
            yield data[at : at + 100]


class World:
    """A janitor of another process looks after every pause."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = SlowToRead(self.clock)
        self.ledger = Ledger(store=self.store, clock=self.clock, rng=random.Random(1))
        self.janitor = Janitor(self.ledger, runner="other")

    def pause(self, seconds: float) -> None:
        self.clock.sleep(seconds)
        self.janitor.tick()

    def get_or_create(self, batch_id: str) -> KeyedBatch:
        return idempotency.get_or_create(
            self.ledger, kind="key", tenant=TENANT, value="K", digest="d", batch_id=batch_id
        )

    def submit(self, chunks: Iterator[bytes], keyed: KeyedBatch, **more: Any) -> BatchRecord:
        draft = Draft(
            batch_id=keyed.batch_id,
            routing=RoutingTable(everything="local"),
            defaults=Defaults(),
            tenant=TENANT,
            created_at=keyed.created_at,
        )
        return submit(self.ledger, draft, chunks, size=1000, is_shared=keyed.is_shared, **{"policy": REJECT, **more})

    def keys(self, prefix: str) -> list[str]:
        return [entry.key for entry in self.store.list(prefix)]

    def attempt(self, num: int, keyed: KeyedBatch, **more: Any) -> BatchRecord:
        return self.submit(iter([line(f"r{number}") for number in range(num)]), keyed, **more)


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize("key", [None, "K"])
def test_a_create_that_takes_hours_is_given_up_by_nobody(world: World, key: str | None) -> None:
    """Neither while the input is stored, nor while it is read again for duplicates, nor by anyone who repeats it."""
    keyed = KeyedBatch(batch_id="one", created_at=world.clock.now()) if key is None else world.get_or_create("one")
    step_s = world.ledger.limits.abandoned_s / 4

    def chunks() -> Iterator[bytes]:
        for number in range(12):
            world.pause(step_s)
            assert key is None or world.get_or_create("another").batch_id == "one"
            yield line(f"r{number % 10}")
        world.store.pause = lambda: world.pause(step_s)

    batch = world.submit(chunks(), keyed)
    assert (batch.batch_id, batch.state, batch.total) == ("one", "open", 12)
    assert world.clock.now() - batch.created_at > 5 * world.ledger.limits.abandoned_s


def test_a_create_that_was_given_up_says_why(world: World) -> None:
    def chunks() -> Iterator[bytes]:
        yield line("r0")
        world.pause(world.ledger.limits.abandoned_s)

    with pytest.raises(BatchDamaged, match=r"its create was abandoned after 60 minutes.*; submit this batch again"):
        world.submit(chunks(), KeyedBatch(batch_id="one", created_at=world.clock.now()))


def test_a_refused_attempt_finds_the_batch_that_another_has_made(world: World) -> None:
    """Two replicas need not have the same settings: what the one takes may be too large for the other."""
    first = world.get_or_create("one")

    def chunks() -> Iterator[bytes]:
        yield line("r0")
        assert world.attempt(2, world.get_or_create("two")).batch_id == "one"
        yield line("r1")

    batch = world.submit(chunks(), first, policy=replace(REJECT, requests_max=1))
    assert batch == batches.read_batch(world.ledger, "one")
    assert batch.state == "open"
    assert world.get_or_create("three").batch_id == "one"
    assert world.keys(ledger_keys.index_prefix(TENANT)) == [ledger_keys.index_key(TENANT, first.created_at, "one")]


@pytest.mark.parametrize("refuses_the_first", [True, False])
def test_what_one_attempt_was_refused_no_other_can_make(world: World, refuses_the_first: bool) -> None:
    first = world.get_or_create("one")
    repeat = world.get_or_create("two")
    refused, accepted = (first, repeat) if refuses_the_first else (repeat, first)

    def chunks() -> Iterator[bytes]:
        yield line("r0") + line("r1")
        with pytest.raises(TooLarge):
            world.attempt(2, refused, policy=replace(REJECT, requests_max=1))

    with pytest.raises(BatchDamaged, match="another attempt of its create was rejected; submit this batch again"):
        world.submit(chunks(), accepted)
    assert batches.read_batch(world.ledger, "one") is None


def test_a_key_of_what_was_refused_is_free_again_and_nothing_of_it_stays(world: World) -> None:
    with pytest.raises(TooLarge):
        world.attempt(2, world.get_or_create("one"), policy=replace(REJECT, requests_max=1))
    assert world.keys(ledger_keys.batch_prefix("one")) == [ledger_keys.batch_key("one")]
    assert world.get_or_create("two").is_first
    assert world.attempt(2, world.get_or_create("three")).batch_id == "two"
    limits = world.ledger.limits
    for _ in range(3):
        world.pause(limits.tombstone_s / 2)
    assert world.keys(ledger_keys.batch_prefix("one")) == []
    assert [ledger_keys.index_batch_id(key) for key in world.keys(ledger_keys.INDEX_PREFIX)] == ["two"]
