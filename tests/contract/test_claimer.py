"""Which shard a runner claims next, counted in requests to the store."""

import json
import random
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import pytest

from batchfile import Ledger, RunnerOptions
from batchfile.errors import StoreUnavailable
from batchfile.testing import ManualClock, MemoryStore
from batchfile.types import Defaults, RoutingTable
from tests.helpers.ledger import Lease, Planned, batches, ending, input_key, keys, shards
from tests.helpers.plan import plan_input
from tests.helpers.runner import NEW_AT_ONCE, QUEUE_LIST_S, RELIST_S, ActiveShard, Claimer, SharedState
from tests.helpers.store import Entry, MeteredStore, Object

POOL, NUM_SHARDS = "one", 100
POOLS = RoutingTable(pools={POOL: ("m",)})


class World:
    """Open batches that share one input and one plan."""

    def __init__(self, num_shards: int) -> None:
        self.clock = ManualClock()
        self.inner = MemoryStore(self.clock)
        self.store = MeteredStore(self.inner)
        self.ledger = Ledger(store=self.store, clock=self.clock, rng=random.Random(3))
        rows = [
            {"custom_id": f"r{n}", "params": {"messages": [{"role": "user", "content": "hello"}]}}
            for n in range(2 * num_shards)
        ]
        self.store.put(input_key("shared", "n"), "\n".join(map(json.dumps, rows)).encode())
        self.planned: Planned = plan_input(
            self.ledger, "shared", input_key("shared", "n"), routing=POOLS, lines_per_range=2
        )

    def create(self, *batch_ids: str, priority: int = 5) -> None:
        for batch_id in batch_ids:
            draft = batches.Draft(batch_id=batch_id, routing=POOLS, defaults=Defaults(), priority=priority)
            batches.create(self.ledger, draft, self.planned)

    def claimer(self, runner_id: str = "r") -> Claimer:
        self.state = SharedState(self.ledger, RunnerOptions(runner_id=runner_id, pool=POOL))
        return Claimer(self.state)

    def num_requests(self, verb: str | None = None) -> int:
        return sum(figure.num for call, figure in self.store.figures().items() if verb in {None, call.verb})


def every(claimer: Claimer) -> Iterator[Lease]:
    """All that is free now."""
    while True:
        held = claimer.next()
        if held is not None:
            yield held
        elif not claimer.has_more:
            return


def test_a_runner_that_comes_late_claims_what_nobody_holds_first() -> None:
    world = World(NUM_SHARDS)
    world.create("b")
    assert len(list(islice(every(world.claimer("early")), NUM_SHARDS - 3))) == NUM_SHARDS - 3

    late = world.claimer("late")
    before = world.num_requests()
    assert late.next() is not None
    spent = world.num_requests() - before
    assert spent < 12, "requests for the one claim, of a hundred shards of which three are free"
    assert len(list(every(late))) == 2


def test_the_first_shard_of_many_batches_is_claimed_before_most_of_them_are_read() -> None:
    world = World(num_shards=3)
    world.create(*(f"b{n:03}" for n in range(500)))
    before = world.num_requests()
    assert world.claimer().next() is not None
    assert world.num_requests() - before <= 2 * NEW_AT_ONCE + 8


def test_every_open_batch_is_read_and_gets_its_turn() -> None:
    world = World(num_shards=3)
    world.create(*(f"b{n:03}" for n in range(200)))
    held = Counter(held.batch.batch_id for held in every(world.claimer()))
    assert len(held) == 200
    assert set(held.values()) == {3}


def test_a_batch_that_is_known_is_not_read_again() -> None:
    world = World(num_shards=3)
    world.create(*(f"b{n:03}" for n in range(100)))
    claimer = world.claimer()
    assert len(list(every(claimer))) == 300
    before = world.num_requests()
    for _ in range(20):
        world.clock.sleep(QUEUE_LIST_S)
        assert claimer.next() is None
    assert world.num_requests() - before == 40, "the change notification and the queue"


def test_the_queue_is_read_from_its_head() -> None:
    world = World(num_shards=1)
    world.create(*(f"late{n:03}" for n in range(100)))
    world.create("first", priority=0)
    claimer = world.claimer()
    assert claimer.next() is not None
    assert claimer.knows("first")
    assert not claimer.knows("late099")


def test_a_batch_of_a_higher_priority_is_chosen_more_often() -> None:
    world = World(NUM_SHARDS)
    world.create("urgent", priority=0)
    world.create("patient", priority=9)
    held = Counter(one.batch.batch_id for one in islice(every(world.claimer()), 60))
    assert held["urgent"] > 4 * held["patient"]


def test_a_new_batch_does_not_wait_for_a_look_at_all_that_others_hold() -> None:
    world = World(num_shards=20)
    world.create(*(f"b{n:03}" for n in range(300)))
    assert sum(1 for _ in every(world.claimer("other"))) == 6000
    claimer = world.claimer("late")
    assert list(every(claimer)) == []
    world.clock.sleep(world.ledger.limits.lease_ttl_s / 2)
    world.create("new")
    before = world.num_requests()
    held = next(every(claimer))
    assert held.batch.batch_id == "new"
    assert world.num_requests() - before < 100


def test_what_others_hold_is_not_read_at_every_look() -> None:
    world = World(NUM_SHARDS)
    world.create("b")
    other, claimer = world.claimer("other"), world.claimer()
    assert len(list(every(other))) == NUM_SHARDS
    assert list(every(claimer)) == []
    before = world.num_requests("get")
    for _ in range(2):
        world.clock.sleep(RELIST_S)
        assert list(every(claimer)) == []
    assert world.num_requests("get") - before == 2, "the change notification"


def test_a_shard_that_was_given_back_or_whose_lease_expired_is_claimed_again() -> None:
    world = World(num_shards=2)
    world.create("b")
    given_back, kept = every(world.claimer("other"))
    claimer = world.claimer()
    assert list(every(claimer)) == []
    shards.release(world.ledger, given_back)
    world.clock.sleep(world.ledger.limits.lease_ttl_s / 6)
    assert [held.record.n for held in every(claimer)] == [given_back.record.n]
    world.clock.sleep(world.ledger.limits.lease_ttl_s)
    assert kept.record.n in {held.record.n for held in every(claimer)}


def test_of_a_batch_that_ends_nothing_more_is_claimed_or_read() -> None:
    world = World(num_shards=5)
    world.create("b", "other")
    claimer = world.claimer()
    assert claimer.next() is not None
    record = batches.end(world.ledger, "b", "canceled")
    assert record is not None
    ending.close_all(world.ledger, record, world.planned.plan)
    assert {held.batch.batch_id for held in every(claimer)} == {"other"}
    assert not claimer.knows("b")
    assert ending.finish(world.ledger, "b", runner="r") is not None
    world.clock.sleep(QUEUE_LIST_S)
    assert list(every(claimer)) == []
    assert [keys.queue_batch_id(entry.key) for entry in world.inner.list(keys.QUEUE_PREFIX)] == ["other"]


def test_a_batch_is_perhaps_complete_once_nothing_of_it_is_free_or_in_work_here() -> None:
    world = World(num_shards=3)
    world.create("mine", "shared", "theirs")
    other, claimer = world.claimer("other"), world.claimer()
    held = list(every(other))
    assert {one.batch.batch_id for one in held} == {"mine", "shared", "theirs"}
    for one in held:
        if one.batch.batch_id == "mine" or (one.batch.batch_id == "shared" and one.record.n == 0):
            shards.release(world.ledger, one)
    ours = list(every(claimer))
    assert len(ours) == 4
    for one in ours:
        world.state.take_on(ActiveShard(held=one, left=1))
    assert claimer.exhausted() == []
    world.state.shards.clear()
    assert sorted(claimer.exhausted()) == ["mine", "shared"]
    claimer.forget("shared", 0)
    assert claimer.exhausted() == ["mine"]


def test_a_batch_that_can_not_be_read_now_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(num_shards=1)
    world.create("bad", priority=0)
    world.create(*(f"b{n}" for n in range(5)))
    get = world.inner.get

    def refuse(key: str) -> Object | None:
        if key == keys.batch_key("bad"):
            raise StoreUnavailable("500, always")
        return get(key)

    monkeypatch.setattr(world.inner, "get", refuse)
    claimer = world.claimer()
    assert {held.batch.batch_id for held in every(claimer)} == {f"b{n}" for n in range(5)}
    assert not claimer.is_exhausted
    monkeypatch.undo()
    world.clock.sleep(RELIST_S)
    assert {held.batch.batch_id for held in every(claimer)} == {"bad"}
    assert claimer.is_exhausted


def test_a_batch_that_is_being_read_is_not_exhausted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runner that ends when nothing is left asks from another thread."""
    world = World(num_shards=1)
    world.create("b")
    claimer, real = world.claimer(), Claimer._read
    asked = list[bool]()

    def read(self: Claimer, entry: Entry) -> object:
        asked.append(self.is_exhausted)
        return real(self, entry)

    monkeypatch.setattr(Claimer, "_read", read)
    claimer.next()
    assert asked == [False]
