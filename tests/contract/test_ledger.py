"""The protocol's verbs over a store: what each leaves behind, whichever process does it and however often."""

import itertools
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from batchfile import Ledger, Runner, RunnerOptions
from batchfile.errors import InvalidFile, LeaseLost, PreconditionFailed, StoreFull, StoreUnavailable
from batchfile.testing import EchoEngine, FaultyStore, MemoryStore, run_alone
from batchfile.types import Defaults, RoutingTable
from tests.contract.ledger_kit import BATCH, LOCAL, World, finished, line
from tests.helpers.inbox import Janitor
from tests.helpers.ledger import (
    REJECTED_POOL,
    BatchRecord,
    Lost,
    StatusReader,
    Stored,
    batch_key,
    batches,
    input_key,
    load,
    shards,
    swap,
)
from tests.helpers.store import Object

TWO_POOLS = RoutingTable(pools={"mistral": ("m",), "llama": ("l",)})


# -- planning


def test_a_plan_cuts_whole_lines_and_covers_the_file_exactly() -> None:
    world = World()
    planned = world.plan([line(number) for number in range(100)])
    ranges = planned.plan.ranges
    assert [span.num_lines for span in ranges] == [32, 32, 32, 4]
    assert ranges[0].start == 0
    assert ranges[-1].end == planned.input.size
    assert all(one.end == two.start for one, two in itertools.pairwise(ranges))
    assert [span.first for span in ranges] == [0, 32, 64, 96]


def test_a_batch_with_two_pools_has_its_ranges_twice() -> None:
    world = World()
    rows = [line(number, metadata={"model_hint": "mistral" if number < 40 else "llama"}) for number in range(64)]
    planned = world.plan(rows, TWO_POOLS)
    assert planned.plan.pools == {"mistral": {0: 32, 1: 8}, "llama": {1: 24}}


def test_rejected_lines_are_born_done_in_a_pool_of_their_own() -> None:
    world = World()
    planned = world.create([line(1), b"not json", line(2), line(1), b"", line(3)])
    assert planned.total == 5
    assert planned.num_rejected == 2
    assert planned.plan.pools == {"local": {0: 3}, REJECTED_POOL: {0: 2}}
    record = world.shard(REJECTED_POOL, 0)
    assert (record.state, record.counts.errored) == ("done", 2)
    world.run()
    messages = [row["error"] and row["error"]["message"] for row in world.results()]  # type: ignore[index]
    assert messages[1].startswith("line 2: ")
    assert "used on line 1" in messages[3]
    assert messages[3].startswith("line 4: ")


@pytest.mark.parametrize("rows", [[], [b""], [b"  ", b"\t"]])
def test_a_file_without_a_request_is_refused(rows: list[bytes]) -> None:
    with pytest.raises(InvalidFile, match="no request"):
        World().plan(rows)


def test_nothing_exists_before_the_commit() -> None:
    world = World()
    world.plan([line(1)])
    assert batches.read_batch(world.ledger, BATCH) is None
    assert StatusReader(world.ledger).read(BATCH) is None


# -- leases


def test_only_one_of_two_runners_gets_a_shard() -> None:
    world = World()
    world.create([line(1)])
    world.claim(runner="r1")
    plan = batches.read_plan(world.ledger, world.batch)
    assert shards.claim(world.ledger, world.batch, plan, "local", 0, runner="r2") == "leased"


def test_a_zombie_can_write_nothing_that_counts() -> None:
    world = World()
    world.create([line(number) for number in range(3)])
    zombie = world.claim(runner="r1")
    world.clock.sleep(91)
    heir = world.claim(runner="r2")
    shards.checkpoint(world.ledger, heir, [finished(0, 0)], has_dispatched=True)
    with pytest.raises(LeaseLost):
        shards.checkpoint(world.ledger, zombie, [finished(1, 1)], has_dispatched=True)
    record = world.shard("local", 0)
    assert (record.epoch, record.done, len(record.parts)) == (2, "1", 1)


def test_a_released_shard_is_free_at_once_and_keeps_its_results() -> None:
    world = World()
    world.create([line(number) for number in range(3)])
    held = world.claim()
    shards.checkpoint(world.ledger, held, [finished(0, 0)], has_dispatched=True)
    shards.release(world.ledger, held)
    heir = world.claim(runner="r2")
    assert heir.missing == 0b110
    assert heir.record.crash_count == 0


def test_a_dead_owner_is_replaced_without_waiting() -> None:
    world = World()
    world.create([line(1)])
    world.claim(runner="r1")
    world.store.kill("r1")
    assert world.claim(runner="r2").record.epoch == 2


# -- one compare-and-swap


class Answer:
    """Loses the answer of the next conditional write, before or after it happened."""

    def __init__(self, phase: str, error: type[Exception]) -> None:
        self.phase, self.error, self.is_armed = phase, error, True

    def __call__(self, number: int, verb: str, key: str, phase: str) -> None:
        if self.is_armed and verb == "put" and key.endswith(".json") and phase == self.phase:
            self.is_armed = False
            raise self.error("the answer was lost")


@pytest.mark.parametrize("phase", ["before", "after"])
@pytest.mark.parametrize("error", [StoreUnavailable, PreconditionFailed])
def test_a_write_whose_answer_was_lost_is_found_or_repeated(phase: str, error: type[Exception]) -> None:
    world = World()
    world.create([line(number) for number in range(3)])
    held = world.claim()
    faulty = FaultyStore(world.store, on_call=Answer(phase, error))
    ledger = Ledger(store=faulty, clock=world.clock, rng=random.Random(1))
    shards.checkpoint(ledger, held, [finished(0, 0)], has_dispatched=True)
    shards.checkpoint(ledger, held, [finished(1, 1)], has_dispatched=True)
    record = world.shard("local", 0)
    assert (record.done, record.counts.succeeded, len(record.parts)) == ("3", 2, 2)


class LateStore(MemoryStore):
    """The next conditional write times out and arrives with `arrive`; so does the look at what came of it."""

    is_late = False
    is_unreachable = False
    arrive: Callable[[], object] = staticmethod(lambda: None)

    def put(self, key: str, data: bytes, *, absent: bool = False, match: str | None = None) -> str:
        if self.is_late and match is not None:
            self.is_late, self.is_unreachable = False, True
            self.arrive = lambda: MemoryStore.put(self, key, data, match=match)
            raise StoreUnavailable("no answer")
        return super().put(key, data, absent=absent, match=match)

    def get(self, key: str) -> Object | None:
        if self.is_unreachable:
            self.is_unreachable = False
            raise StoreUnavailable("no answer")
        return super().get(key)


@pytest.mark.parametrize("has_news", [True, False], ids=["with-another-line", "with-the-same-line"])
@pytest.mark.parametrize("has_beaten", [True, False], ids=["after-a-checkpoint", "the-first"])
def test_a_checkpoint_that_is_repeated_commits_its_lines_although_the_first_try_arrives_late(
    has_news: bool, has_beaten: bool
) -> None:
    world = World()
    world.store = store = LateStore(world.clock)
    world.ledger = replace(world.ledger, store=store)
    world.create([line(number) for number in range(3)])
    held = world.claim()
    if has_beaten:
        shards.checkpoint(world.ledger, held, has_dispatched=True)
    store.is_late = True
    with pytest.raises(StoreUnavailable):
        shards.checkpoint(world.ledger, held, [finished(0, 0)], has_dispatched=True)
    store.arrive()
    assert world.shard("local", 0).done == "1"
    lines = [finished(0, 0), finished(1, 1)] if has_news else [finished(0, 0)]
    shards.checkpoint(world.ledger, held, lines, has_dispatched=True)
    for record in (held.record, world.shard("local", 0)):
        assert (record.done, record.counts.succeeded) == (("3", 2) if has_news else ("1", 1))


@pytest.mark.parametrize("error", [StoreFull, StoreUnavailable])
def test_a_write_that_fails_again_and_again_says_what_the_store_said(error: type[StoreUnavailable]) -> None:
    """There is no room: the kind of error stays too, since somebody must make some."""
    world = World()
    planned = world.plan([line(1)])

    def refuse(number: int, verb: str, key: str, phase: str) -> None:
        if key == batch_key(BATCH):
            raise error("what the store said")

    ledger = Ledger(store=FaultyStore(world.store, on_call=refuse), clock=world.clock)
    with pytest.raises(StoreUnavailable, match="what the store said") as raised:
        batches.create(ledger, batches.Draft(batch_id=BATCH, routing=LOCAL, defaults=Defaults()), planned)
    assert type(raised.value) is error


def test_another_writers_record_is_never_taken_for_ours() -> None:
    world = World()
    world.create([line(1)])
    held = world.claim()
    world.clock.sleep(91)
    world.claim(runner="r2")
    lost = swap(world.ledger, held.key, held.record, held.stored)
    assert isinstance(lost, Lost)
    assert lost.found is not None
    assert lost.found.record.runner == "r2"


def test_creating_finds_its_own_write_after_a_lost_answer() -> None:
    world = World()
    planned = world.plan([line(1)])
    ledger = Ledger(store=FaultyStore(world.store, on_call=Answer("after", StoreUnavailable)), clock=world.clock)
    record = batches.create(ledger, batches.Draft(batch_id=BATCH, routing=LOCAL, defaults=Defaults()), planned)
    assert world.batch == record


# -- two pools, status, janitoring


def test_two_pools_answer_one_batch_in_input_order() -> None:
    world = World()
    rows = [line(number, metadata={"model_hint": ("mistral", "llama")[number % 2]}) for number in range(50)]
    world.create(rows, TWO_POOLS)
    mistral = RunnerOptions(runner_id="m", pool="mistral", is_janitor=False)
    llama = RunnerOptions(runner_id="l", pool="llama", only=BATCH, is_janitor=False)
    first = Runner(world.ledger, lambda: EchoEngine(num_slots=4), mistral)
    drive(first, lambda: StatusReader(world.ledger).read(BATCH).status.counts.finished == 25)  # type: ignore[union-attr]
    assert world.batch.state == "open"
    run_alone(Runner(world.ledger, lambda: EchoEngine(num_slots=4), llama))
    assert [row["custom_id"] for row in world.results()] == [f"r{number}" for number in range(50)]
    assert world.batch.counts.succeeded == 50


def drive(runner: Runner, until: Callable[[], bool]) -> None:
    run_alone(runner, until=until)


def test_status_adds_up_and_never_goes_back() -> None:
    world = World()
    world.create([line(number) for number in range(40)])
    reader = StatusReader(world.ledger)
    seen = [reader.read(BATCH)]
    held = world.claim()
    shards.checkpoint(world.ledger, held, [finished(0, 0)], has_dispatched=True)
    seen.append(reader.read(BATCH))
    shards.release(world.ledger, held)
    seen.append(reader.read(BATCH))
    world.run()
    seen.append(reader.read(BATCH))
    statuses = [found.status for found in seen if found is not None]
    counts = [status.counts.finished for status in statuses]
    assert counts == [0, 1, 1, 40]
    assert all(status.pending + status.counts.finished == 40 for status in statuses)


def test_the_janitor_expires_ends_deletes_and_sweeps() -> None:
    world = World()
    world.create([line(1)])
    limits = world.ledger.limits
    world.clock.sleep(limits.completion_window_s)
    Janitor(world.ledger, runner="s").tick()
    assert (world.batch.state, world.batch.reason) == ("ended", "expired")
    world.clock.sleep(limits.retention_s)
    Janitor(world.ledger, runner="s").tick()
    assert batches.read_batch(world.ledger, BATCH) is None
    world.clock.sleep(limits.tombstone_s)
    Janitor(world.ledger, runner="s").tick()
    Janitor(world.ledger, runner="s").tick()
    assert [entry.key for entry in world.store.list("batches/")] in ([], [batch_key(BATCH)])


def test_the_janitor_ends_what_nobody_ended() -> None:
    world = World()
    world.create([line(1)])
    held = world.claim()
    shards.checkpoint(world.ledger, held, [finished(1, 0)], has_dispatched=True)
    Janitor(world.ledger, runner="s").tick()
    assert world.batch.reason == "completed"


def test_a_create_that_was_abandoned_can_not_commit_later() -> None:
    world = World()
    planned = world.plan([line(1)])
    draft = batches.Draft(batch_id=BATCH, routing=LOCAL, defaults=Defaults())

    def cut_off(number: int, verb: str, key: str, phase: str) -> None:
        if key.endswith("batch.json"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batches.create(Ledger(store=FaultyStore(world.store, on_call=cut_off), clock=world.clock), draft, planned)
    world.clock.sleep(world.ledger.limits.abandoned_s)
    Janitor(world.ledger, runner="s").tick()
    late = load(world.ledger, batch_key(BATCH), BatchRecord)
    assert isinstance(late, Stored)
    assert late.record.state == "deleted"
    assert world.store.get(input_key(BATCH, "n")) is None
