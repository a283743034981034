"""How many batches a tenant has open, and what it costs to know."""

import random
from dataclasses import replace

import pytest

from batchfile import Ledger
from batchfile.testing import ManualClock, MemoryStore
from batchfile.types import Defaults, RoutingTable
from tests.helpers.inbox import FileRecord
from tests.helpers.inbox import source_of_file as source
from tests.helpers.ledger import BatchRecord, batches, ending, keys, retention
from tests.helpers.lines import URL
from tests.helpers.plan import pending, plan_input
from tests.helpers.service import FULL_S, Refusal, Room
from tests.helpers.store import MeteredStore

ROUTING = RoutingTable(pools={"one": ("m",)})
LIMIT = 5


class World:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MeteredStore(MemoryStore(self.clock))
        self.ledger = Ledger(store=self.store, clock=self.clock, rng=random.Random(3))
        self.room = Room(self.ledger, LIMIT)
        key = keys.input_key("shared", "n")
        self.store.put(key, b'{"custom_id":"a","params":{"messages":[{"role":"user","content":"hello"}]}}')
        self.planned = plan_input(self.ledger, "shared", key, routing=ROUTING)

    def create(self, batch_id: str, tenant: str = "acme") -> BatchRecord:
        draft = batches.Draft(batch_id=batch_id, routing=ROUTING, defaults=Defaults(), tenant=tenant)
        return batches.create(self.ledger, draft, self.planned)

    def store_file(self, batch_id: str) -> None:
        """A batch of it, that nobody plans."""
        self.store.put("files/f", b"x")
        file = FileRecord(
            file_id="f",
            tenant="acme",
            filename="f",
            purpose="batch",
            key="files/f",
            size=1,
            sha256="",
            created_at=0.0,
            expires_at=0.0,
        )
        draft = batches.Draft(
            batch_id=batch_id, routing=ROUTING, defaults=Defaults(), tenant="acme", created_at=self.clock.now()
        )
        pending.create(self.ledger, draft, source(self.ledger, file, endpoint=URL, requests_max=100))

    def end(self, batch_id: str) -> None:
        batches.end(self.ledger, batch_id, "canceled")
        assert ending.finish(self.ledger, batch_id, runner="r") is not None

    def is_full(self, tenant: str = "acme") -> bool:
        try:
            self.room.check(tenant)
        except Refusal:
            return True
        return False

    def spent(self, verb: str) -> int:
        return sum(figure.num for call, figure in self.store.figures().items() if call.verb == verb)


@pytest.fixture
def world() -> World:
    return World()


def test_a_tenant_is_full_with_its_share_and_has_room_again_when_one_ends(world: World) -> None:
    for n in range(LIMIT):
        assert not world.is_full()
        world.create(f"b{n}")
    with pytest.raises(Refusal, match="5 batches are open") as refused:
        world.room.check("acme")
    assert refused.value.status == 429
    world.end("b2")
    world.clock.sleep(FULL_S)
    assert not world.is_full()


def test_what_is_being_planned_or_ended_counts(world: World) -> None:
    for n in range(LIMIT - 1):
        world.store_file(f"f{n}")
    world.create("b")
    batches.end(world.ledger, "b", "canceled")
    assert world.is_full()


def test_other_tenants_neither_count_nor_cost(world: World) -> None:
    for n in range(3 * LIMIT):
        world.create(f"b{n}", tenant="zeta")
    lists, gets = world.spent("list"), world.spent("get")
    assert not world.is_full("acme")
    assert (world.spent("list") - lists, world.spent("get") - gets) == (1, 0)


def test_what_has_ended_is_read_once_and_not_at_all_where_it_was_heard_of(world: World) -> None:
    for n in range(20):
        world.end(world.create(f"b{n}").batch_id)
    for n in range(10):
        ended = batches.read_batch(world.ledger, f"b{n}")
        assert ended is not None
        world.room.on_ended(ended)
    before = world.spent("get")
    assert not world.is_full()
    assert world.spent("get") - before == 10
    before = world.spent("get")
    assert not world.is_full()
    assert world.spent("get") == before


def test_who_is_full_is_not_counted_again_for_a_while_unless_a_batch_of_it_ends(world: World) -> None:
    for n in range(LIMIT):
        world.create(f"b{n}")
    assert world.is_full()
    lists = world.spent("list")
    assert world.is_full()
    assert world.spent("list") == lists
    world.end("b0")
    ended = batches.read_batch(world.ledger, "b0")
    assert ended is not None
    world.room.on_ended(replace(ended, tenant="zeta"))
    assert world.is_full()
    world.room.on_ended(ended)
    assert not world.is_full()


def test_a_create_that_was_given_up_or_a_deleted_batch_takes_no_room(world: World) -> None:
    for n in range(LIMIT - 1):
        world.create(f"b{n}")
    for n in range(LIMIT):
        draft = batches.Draft(
            batch_id=f"gone{n}", routing=ROUTING, defaults=Defaults(), tenant="acme", created_at=world.clock.now()
        )
        batches.announce(world.ledger, draft)
        world.end(world.create(f"deleted{n}").batch_id)
        retention.delete(world.ledger, f"deleted{n}")
    assert not world.is_full()
