"""What counts as the crash of a process: that it is silent while the store works, and stays so when it is asked."""

import random
from dataclasses import replace

import pytest

from batchfile import Ledger
from batchfile.errors import StoreUnavailable
from batchfile.testing import FaultyStore, Ill, ManualClock, MemoryStore
from batchfile.types import Counts, Defaults, RoutingTable, Usage
from tests.helpers.inbox import FileRecord, Janitor, stored_files
from tests.helpers.inbox import source_of_file as source
from tests.helpers.ledger import (
    BatchRecord,
    Lease,
    Lost,
    ShardRecord,
    batches,
    give_back_owed,
    keys,
    lease,
    load,
    shards,
    swap,
)
from tests.helpers.plan import pending
from tests.helpers.plan import planner as planner_module

LINE = b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": []}}\n'
KEY = keys.planning_key("b")


class World:
    """A batch `b` that is not planned yet, of a file that is good."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock)
        first = self.process(0)
        file = stored_files.store_file(
            first.ledger, "acme", [LINE], filename="f", purpose="batch", kept_s=30 * 86400.0, bytes_max=10**6
        )
        self.create(first.ledger, file)

    def process(self, number: int) -> "Process":
        return Process(self, number)

    def create(self, ledger: Ledger, file: FileRecord) -> None:
        draft = batches.Draft(
            batch_id="b",
            routing=RoutingTable(pools={"mistral": ("m",)}),
            defaults=Defaults(),
            tenant="acme",
            created_at=self.clock.now(),
        )
        pending.create(ledger, draft, source(ledger, file, endpoint="/v1/chat/completions", requests_max=9))

    @property
    def state(self) -> str:
        batch = batches.read_batch(self.process(99).ledger, "b")
        assert batch is not None
        return batch.state if batch.reason is None else batch.reason

    def claim(self, process: "Process", key: str = KEY, *, counts: bool = False) -> Lease | None:
        batch = batches.read_batch(process.ledger, "b")
        assert batch is not None
        return shards.claim_task(process.ledger, batch, key, "_task", runner=process.name, counts=counts)

    def task(self) -> ShardRecord:
        found = load(self.process(99).ledger, KEY, ShardRecord)
        assert found is not None
        return found.record


class Process:
    """With a way of its own to the store, which may be down."""

    def __init__(self, world: World, number: int) -> None:
        self.name = f"r{number}"
        self.store = FaultyStore(world.store)
        self.ledger = Ledger(store=self.store, clock=world.clock, rng=random.Random(number))
        self.janitor = Janitor(self.ledger, runner=self.name)

    def plan(self) -> BatchRecord | None:
        return pending.plan(self.ledger, "b", runner=self.name)


class Died(BaseException):
    pass


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[Process | None]:
    """What happens at the next plans: this process is cut off from the store; None: the one that plans dies."""
    happens: list[Process | None] = []
    real = planner_module.plan_input

    def plan_input(ledger: Ledger, *args: object, **more: object) -> object:
        if happens:
            cut_off = happens.pop(0)
            if cut_off is None:
                raise Died
            cut_off.store.is_down = True
            raise StoreUnavailable("down")
        return real(ledger, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(pending, "plan_input", plan_input)
    return happens


def test_no_outage_while_a_file_is_planned_counts_against_it(world: World, plans: list[Process | None]) -> None:
    for number in range(2 * pending.CRASHES_MAX):
        process, other = world.process(number), world.process(50 + number)
        plans.append(process)
        with pytest.raises(StoreUnavailable):
            process.plan()
        world.clock.sleep(process.ledger.limits.lease_ttl_s)
        process.store.is_down = False
        assert other.plan() is None  # comes first when the store is back, and asks
        give_back_owed(process.ledger)  # which is the answer
        assert world.task().state == "open"
    opened = other.plan()
    assert opened is not None
    assert opened.state == "open"
    assert world.task().crash_count == 0


def test_a_task_whose_return_failed_is_given_back_once_the_store_is_there(
    world: World, plans: list[Process | None]
) -> None:
    """Within its lease, without anybody who asks."""
    process, other = world.process(1), world.process(2)
    plans.append(process)
    with pytest.raises(StoreUnavailable):
        process.plan()
    assert world.task().state == "leased"
    process.store.is_down = False
    process.store.ills = [Ill(pattern="batches/b/batch.json", answer="500")]  # so that it does not plan it at once
    process.janitor.tick()
    assert world.task().state == "open"
    opened = other.plan()
    assert opened is not None
    assert opened.state == "open"


def test_a_planner_that_died_is_counted_after_it_was_asked_for_a_whole_lease(
    world: World, plans: list[Process | None]
) -> None:
    ttl_s = world.process(0).ledger.limits.lease_ttl_s
    for number in range(pending.CRASHES_MAX):
        plans.append(None)
        with pytest.raises(Died):
            world.process(number).plan()
        heir = world.process(50 + number)
        world.clock.sleep(ttl_s)
        assert heir.plan() is None
        world.clock.sleep(ttl_s - 1)
        assert heir.plan() is None
        world.clock.sleep(1)
    assert heir.plan() is not None
    assert world.state == "failed"


def test_a_holder_that_is_asked_and_beats_keeps_its_task(world: World) -> None:
    process, other = world.process(1), world.process(2)
    task = world.claim(process, counts=True)
    assert task is not None
    world.clock.sleep(process.ledger.limits.lease_ttl_s)
    assert other.plan() is None
    assert world.task().is_doubted
    shards.beat(process.ledger, task)
    assert not world.task().is_doubted
    world.clock.sleep(process.ledger.limits.lease_ttl_s - 1)
    assert other.plan() is None
    assert not world.task().is_doubted


def test_a_task_that_counts_for_nothing_is_taken_over_at_once(world: World) -> None:
    process, other = world.process(1), world.process(2)
    key = keys.assembly_key("b")
    assert world.claim(process, key) is not None
    world.clock.sleep(process.ledger.limits.lease_ttl_s)
    assert world.claim(other, key) is not None


def shard(world: World, *, bisect_set: tuple[int, ...], has_dispatched: bool = True) -> tuple[str, ShardRecord]:
    """The record of a shard whose holder tries these lines, as it stands in the store."""
    key = keys.shard_key("b", "mistral", 0)
    fresh = lease.fresh("mistral", 0, 8, lease="a", runner="r1")
    held = replace(fresh, bisect_set=bisect_set, has_dispatched=has_dispatched, crash_count=2)
    assert not isinstance(swap(world.process(0).ledger, key, held, None), Lost)
    return key, held


def take_over(world: World, key: str) -> ShardRecord | None:
    ledger = world.process(2).ledger
    fresh = lease.fresh("mistral", 0, 8, lease=ledger.new_id(), runner="r2")
    taken = shards.take(ledger, key, load(ledger, key, ShardRecord), fresh)
    return None if taken is None else taken.record


def test_a_line_is_blamed_for_an_expired_lease_only_when_its_runner_was_asked(world: World) -> None:
    key, _ = shard(world, bisect_set=(3,))
    ttl_s = world.process(0).ledger.limits.lease_ttl_s
    world.clock.sleep(ttl_s)
    assert take_over(world, key) is None
    assert take_over(world, key) is None
    world.clock.sleep(ttl_s)
    taken = take_over(world, key)
    assert taken is not None
    assert (taken.crashes_alone, taken.is_doubted) == (1, False)


def test_a_runner_that_was_cut_off_answers_with_its_next_checkpoint(world: World) -> None:
    key, held = shard(world, bisect_set=(3,))
    ledger = world.process(1).ledger
    stored = load(ledger, key, ShardRecord)
    world.clock.sleep(ledger.limits.lease_ttl_s)
    assert take_over(world, key) is None
    beaten = lease.released(held, seq=held.seq + 1)
    written = swap(ledger, key, beaten, stored)  # over the version that it knows
    assert not isinstance(written, Lost)
    taken = take_over(world, key)
    assert taken is not None
    assert (taken.crashes_alone, taken.crash_count) == (0, 2)


@pytest.mark.parametrize(("bisect_set", "has_dispatched"), [((), True), ((2, 3), True), ((3,), False)])
def test_a_shard_of_which_no_line_would_be_blamed_is_taken_over_at_once(
    world: World, bisect_set: tuple[int, ...], has_dispatched: bool
) -> None:
    key, _ = shard(world, bisect_set=bisect_set, has_dispatched=has_dispatched)
    world.clock.sleep(world.process(0).ledger.limits.lease_ttl_s)
    assert take_over(world, key) is not None


def test_a_line_that_its_holder_ended_for_is_blamed_after_one_lease(world: World) -> None:
    ledger = world.process(0).ledger
    key, held = shard(world, bisect_set=())
    accused = lease.checkpointed(
        held, seq=2, part=None, done=0, counts=Counts(), usage=Usage(), has_dispatched=False, accused=3
    )
    assert not isinstance(swap(ledger, key, accused, load(ledger, key, ShardRecord)), Lost)
    world.clock.sleep(ledger.limits.lease_ttl_s)
    taken = take_over(world, key)
    assert taken is not None
    assert (taken.bisect_set, taken.crashes_alone) == ((3,), 1)
