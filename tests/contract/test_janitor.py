"""What a janitor does to the batches of a store, when, and how little it asks while nothing is to be done."""

import json
import random
from dataclasses import replace

import pytest
import structlog

from batchfile import Ledger
from batchfile.errors import StoreError
from batchfile.testing import ManualClock, MemoryStore
from batchfile.types import Defaults, RoutingTable
from tests.helpers.inbox import RELOOK_S, Inbox, Janitor, janitor
from tests.helpers.ledger import (
    BatchRecord,
    HeartbeatRecord,
    Lease,
    batches,
    ending,
    keys,
    retention,
    shards,
    write_heartbeat,
)
from tests.helpers.lines import FinishedLine
from tests.helpers.plan import plan_input
from tests.helpers.store import MeteredStore, Object

POOLS = RoutingTable(pools={"mistral": ("m",), "llama": ("l",)})
TICK_S = 15.0


class World:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MeteredStore(MemoryStore(self.clock))
        self.ledger = Ledger(store=self.store, clock=self.clock, rng=random.Random(7))
        self.ended: list[str] = []
        self.janitor = Janitor(self.ledger, runner="s", on_ended=lambda batch: self.ended.append(batch.batch_id))

    def create(self, batch_id: str, hints: tuple[str, ...] = ("mistral",)) -> BatchRecord:
        rows = [
            {"custom_id": f"r{n}", "params": {"messages": [{"role": "user", "content": "hello"}]}, "model": hint}
            for n, hint in enumerate(hints)
        ]
        for row, hint in zip(rows, hints, strict=True):
            row["metadata"] = {"model_hint": hint}
            del row["model"]
        key = keys.input_key(batch_id, "n")
        self.store.put(key, "\n".join(map(json.dumps, rows)).encode())
        planned = plan_input(self.ledger, batch_id, key, routing=POOLS)
        return batches.create(
            self.ledger, batches.Draft(batch_id=batch_id, routing=POOLS, defaults=Defaults()), planned
        )

    def answer(self, batch_id: str, pool: str = "mistral") -> None:
        """Do all of one pool's only shard; nobody ends the batch."""
        batch = batches.read_batch(self.ledger, batch_id)
        assert batch is not None
        plan = batches.read_plan(self.ledger, batch)
        held = shards.claim(self.ledger, batch, plan, pool, 0, runner="r")
        assert isinstance(held, Lease)
        (line,) = range(held.record.num_lines)
        shards.checkpoint(self.ledger, held, [FinishedLine(line, "succeeded", b"{}")], has_dispatched=True)

    def tick(self) -> int:
        """One tick, 15 s after the last; how many requests it took."""
        self.clock.sleep(TICK_S)
        before = sum(figure.num for figure in self.store.figures().values())
        self.janitor.tick()
        return sum(figure.num for figure in self.store.figures().values()) - before

    def state(self, batch_id: str) -> str | None:
        batch = batches.read_batch(self.ledger, batch_id)
        return None if batch is None else batch.state

    def end(self, batch_id: str) -> None:
        batches.end(self.ledger, batch_id, "canceled")
        ending.finish(self.ledger, batch_id, runner="r")


def test_ended_batches_cost_nothing_but_their_line_in_the_index() -> None:
    world = World()
    for n in range(30):
        world.create(f"b{n}")
        world.end(f"b{n}")
    world.tick()
    assert [world.tick() for _ in range(3)] == [1, 1, 1]


def test_an_open_batch_costs_what_changed() -> None:
    world = World()
    world.create("a", ("mistral", "llama"))
    world.tick()
    listings = 1 + 2  # the index, and two queues
    assert world.tick() == listings + 2
    world.answer("a", "llama")
    assert world.tick() == listings - 1 + 2 + 1
    assert world.tick() == listings - 1 + 2


def test_a_batch_is_ended_where_all_is_done_and_its_parts_are_swept() -> None:
    world = World()
    world.create("a")
    world.tick()
    world.answer("a")
    world.tick()
    assert world.state("a") == "ended"
    assert list(world.store.list(keys.parts_prefix("a"))) == []


def test_an_ending_that_was_cut_off_is_finished() -> None:
    world = World()
    world.create("a")
    batches.end(world.ledger, "a", "canceled")
    world.tick()
    assert world.state("a") == "ended"


def test_a_batch_is_deleted_when_its_retention_is_over_and_then_removed_step_by_step() -> None:
    world = World()
    world.create("a")
    world.end("a")
    limits = world.ledger.limits
    world.tick()
    world.clock.sleep(limits.retention_s - 2 * TICK_S)
    world.tick()
    assert world.state("a") is None
    assert list(world.store.list(keys.shards_prefix("a"))) != []
    world.clock.sleep(limits.download_grace_s - TICK_S)
    world.tick()
    assert [entry.key for entry in world.store.list("batches/")] == [keys.batch_key("a")]
    assert world.tick() == 1
    world.clock.sleep(limits.tombstone_s)
    world.tick()
    assert list(world.store.list("batches/")) == list(world.store.list("index/")) == []


class WrongClock:
    """Of one process: off by so many seconds."""

    def __init__(self, right: ManualClock, off_s: float) -> None:
        self._right, self._off_s = right, off_s
        self.monotonic, self.sleep = right.monotonic, right.sleep

    def now(self) -> float:
        return self._right.now() + self._off_s


DAYS_S = 30 * 24 * 3600.0


def test_a_janitor_whose_clock_is_ahead_expires_and_deletes_nothing_before_its_time() -> None:
    world = World()
    wrong = replace(world.ledger, clock=WrongClock(world.clock, DAYS_S))
    janitor = Janitor(wrong, runner="wrong")
    world.create("open")
    world.create("ended")
    world.end("ended")
    janitor.tick()
    world.clock.sleep(RELOOK_S)
    janitor.tick()
    assert (world.state("open"), world.state("ended")) == ("open", "ended")
    world.clock.sleep(world.ledger.limits.completion_window_s)
    janitor.tick()
    assert world.state("open") == "ended"
    world.clock.sleep(world.ledger.limits.retention_s)
    janitor.tick()
    assert world.state("ended") is None


def test_a_batch_of_a_creator_whose_clock_is_behind_has_its_whole_window() -> None:
    world = World()
    right = world.ledger
    world.ledger = replace(right, clock=WrongClock(world.clock, -DAYS_S))
    world.create("a")
    world.ledger = right
    world.tick()
    assert world.state("a") == "open"
    world.clock.sleep(right.limits.completion_window_s)
    world.tick()
    assert world.state("a") == "ended"


def test_a_janitor_whose_clock_is_set_back_goes_on_looking() -> None:
    world = World()
    clock = WrongClock(world.clock, 0.0)
    janitor = Janitor(replace(world.ledger, clock=clock), runner="s")
    world.create("a")
    janitor.tick()
    clock._off_s = -DAYS_S
    world.answer("a")
    world.clock.sleep(TICK_S)
    janitor.tick()
    assert world.state("a") == "ended"


def test_a_batch_that_its_user_deletes_early_is_found_within_an_hour() -> None:
    world = World()
    world.create("a")
    world.end("a")
    world.tick()
    retention.delete(world.ledger, "a")
    world.clock.sleep(RELOOK_S)
    world.tick()
    assert [entry.key for entry in world.store.list("batches/")] == [keys.batch_key("a")]


def test_a_lost_queue_entry_is_put_back_and_its_pool_notified() -> None:
    world = World()
    batch = world.create("a", ("mistral", "llama"))
    world.tick()
    lost = keys.queue_key("llama", batch.priority, batch.created_at, "a")
    world.store.delete(lost)
    before = {pool: world.store.get(keys.notification_key(pool)) for pool in ("mistral", "llama")}
    world.tick()
    assert world.store.head(lost) is not None
    after = {pool: world.store.get(keys.notification_key(pool)) for pool in ("mistral", "llama")}
    assert [pool for pool in after if after[pool].data != before[pool].data] == ["llama"]  # type: ignore[union-attr]


def test_the_queue_entry_of_a_pool_that_has_nothing_left_is_not_put_back() -> None:
    world = World()
    batch = world.create("a", ("mistral", "llama"))
    world.answer("a", "llama")
    done = keys.queue_key("llama", batch.priority, batch.created_at, "a")
    world.store.delete(done)
    world.tick()
    assert world.store.head(done) is None


def test_every_end_is_told_once_whoever_ended_it_and_when() -> None:
    world = World()
    world.create("before")
    world.end("before")
    world.clock.sleep(1.0)
    late = Janitor(world.ledger, runner="t", on_ended=lambda batch: world.ended.append(batch.batch_id))
    for name in ("mine", "another's", "unseen"):
        world.create(name.replace("'", ""))
    late.tick()
    world.end("anothers")
    world.end("unseen")
    world.answer("mine")
    for _ in range(3):
        world.clock.sleep(RELOOK_S)
        late.tick()
    assert sorted(world.ended) == ["anothers", "before", "mine", "unseen"]


def test_a_damaged_batch_is_left_alone_for_an_hour_and_stops_no_other() -> None:
    world = World()
    for name in ("a", "b", "c"):
        world.create(name)
    world.store.put(keys.batch_key("b"), b"{")
    batches.end(world.ledger, "a", "canceled")
    batches.end(world.ledger, "c", "canceled")
    world.tick()
    assert [world.state("a"), world.state("c")] == ["ended", "ended"]
    assert world.tick() == 1


def test_one_tick_looks_at_a_bounded_number_and_the_next_goes_on() -> None:
    world = World()
    for n in range(9):
        world.create(f"b{n}")
        batches.end(world.ledger, f"b{n}", "canceled")
    janitor.LOOKS_MAX, kept = 3, janitor.LOOKS_MAX
    try:
        left = []
        for _ in range(3):
            world.tick()
            left.append(sum(world.state(f"b{n}") == "ending" for n in range(9)))
    finally:
        janitor.LOOKS_MAX = kept
    assert left == [6, 3, 0]


def test_what_belongs_to_no_batch_is_swept_once_an_hour() -> None:
    world = World()
    record = HeartbeatRecord(pool="mistral", runner_id="r", model="m", engine="echo", state="running", started_at=0.0)
    write_heartbeat(world.ledger, record)
    world.tick()
    world.clock.sleep(25 * 3600.0)
    write_heartbeat(world.ledger, HeartbeatRecord(**{**_fields(record), "runner_id": "new"}))
    world.tick()
    assert [entry.key for entry in world.store.list("runners/")] == [keys.heartbeat_key("mistral", "new")]


def _fields(record: HeartbeatRecord) -> dict[str, object]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


class BrokenInbox(Inbox):
    """An inbox that the store refuses to read."""

    def look(self) -> None:
        raise StoreError("inbox/x: permission denied")

    def sweep(self) -> int:
        raise StoreError("inbox/x: permission denied")


def test_an_inbox_that_can_not_be_read_keeps_no_batch_waiting() -> None:
    world = World()
    world.janitor = Janitor(world.ledger, runner="s", inbox=BrokenInbox(world.ledger, POOLS))
    world.create("a")
    batches.end(world.ledger, "a", "canceled")
    world.tick()
    assert world.state("a") == "ended"


def test_a_batch_that_the_store_refuses_something_for_keeps_no_other_waiting() -> None:
    world = World()
    for batch_id in ("a", "b"):
        world.create(batch_id)
        batches.end(world.ledger, batch_id, "canceled")

    class Refusing(MeteredStore):
        def get(self, key: str) -> Object | None:
            if key.startswith("batches/a/plan-"):
                raise StoreError(f"{key}: permission denied")
            return super().get(key)

    ledger = Ledger(store=Refusing(world.store), clock=world.clock, rng=random.Random(7))
    world.janitor = Janitor(ledger, runner="s")
    world.tick()
    assert (world.state("a"), world.state("b")) == ("ending", "ended")


class Odd(MeteredStore):
    """A store in which what is read of `key` is nothing that anybody foresaw."""

    def __init__(self, store: MeteredStore, key: str, error: BaseException) -> None:
        super().__init__(store)
        self.key, self.error = key, error

    def get(self, key: str) -> Object | None:
        if key.startswith(self.key):
            raise self.error
        return super().get(key)


def test_what_nobody_expects_of_one_batch_stops_no_other_and_is_tried_again() -> None:
    world = World()
    for batch_id in ("a", "b"):
        world.create(batch_id)
        batches.end(world.ledger, batch_id, "canceled")
    odd = Odd(world.store, "batches/a/plan-", KeyError("Column custom_id does not exist in schema"))
    world.janitor = Janitor(Ledger(store=odd, clock=world.clock, rng=random.Random(7)), runner="s")
    with structlog.testing.capture_logs() as events:
        world.tick()
    assert (world.state("a"), world.state("b")) == ("ending", "ended")
    (stuck,) = [event for event in events if event["event"] == "batch.stuck"]
    assert (stuck["batch_id"], stuck["log_level"], stuck["exc_info"]) == ("a", "error", True)
    odd.key = "nothing"
    world.tick()
    assert world.state("a") == "ending"
    world.clock.sleep(janitor.STUCK_S)
    world.tick()
    assert world.state("a") == "ended"


def test_a_process_that_is_killed_while_it_janitors_does_nothing_more() -> None:
    class Gone(BaseException):
        pass

    world = World()
    for batch_id in ("a", "b"):
        world.create(batch_id)
        batches.end(world.ledger, batch_id, "canceled")
    odd = Odd(world.store, "batches/a/plan-", Gone())
    world.janitor = Janitor(Ledger(store=odd, clock=world.clock, rng=random.Random(7)), runner="s")
    with pytest.raises(Gone):
        world.tick()


def test_a_sweep_that_fails_keeps_no_other_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(ledger: Ledger) -> None:
        raise KeyError("x")

    world, swept = World(), list[Ledger]()
    monkeypatch.setattr(janitor, "_SWEEPS", (failing, swept.append))
    world.tick()
    assert swept == [world.ledger]
