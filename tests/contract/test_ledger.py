"""The protocol's verbs over a store: what each leaves behind, whoever does it and however often."""

import itertools
import json
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import structlog

from batchfile.clock import ManualClock
from batchfile.engine.echo import EchoEngine
from batchfile.errors import InvalidFile, LeaseLost, ObjectChanged, PreconditionFailed, StoreFull, StoreUnavailable
from batchfile.janitor import Janitor
from batchfile.ledger import batches, ending, lease, shards
from batchfile.ledger.base import Ledger, Limits
from batchfile.ledger.batches import Planned
from batchfile.ledger.cas import Lost, Stored, load, swap
from batchfile.ledger.keys import REJECTED_POOL, assembly_key, batch_key, input_key, shard_key
from batchfile.ledger.records import BatchRecord, ShardRecord
from batchfile.ledger.shards import Lease
from batchfile.ledger.status import StatusReader
from batchfile.lines.result import FinishedLine, encode_result
from batchfile.plan import planner as planner_module
from batchfile.plan.planner import plan_input
from batchfile.runner.runner import Runner, RunnerOptions
from batchfile.store.base import Object
from batchfile.store.memory import MemoryStore
from batchfile.testing import run_alone
from batchfile.testing.faulty_store import FaultyStore
from batchfile.types import Choice, Completion, Defaults, RoutingTable, Usage

BATCH = "b"
LOCAL = RoutingTable(everything="local")
TWO_POOLS = RoutingTable(pools={"mistral": ("m",), "llama": ("l",)})


def line(number: int, **more: object) -> bytes:
    messages = [{"role": "user", "content": f"lead {number}"}]
    return json.dumps({"custom_id": f"r{number}", "params": {"messages": messages, "max_tokens": 4}, **more}).encode()


class World:
    """A memory store, a clock that stands still, and one batch."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock)
        self.ledger = Ledger(store=self.store, clock=self.clock, rng=random.Random(7), limits=Limits())

    def plan(self, rows: list[bytes], routing: RoutingTable = LOCAL) -> Planned:
        key = input_key(BATCH, "n")
        self.store.put(key, b"\n".join(rows))
        return plan_input(self.ledger, BATCH, key, routing=routing)

    def create(self, rows: list[bytes], routing: RoutingTable = LOCAL) -> Planned:
        planned = self.plan(rows, routing)
        batches.create(self.ledger, batches.Draft(batch_id=BATCH, routing=routing, defaults=Defaults()), planned)
        return planned

    @property
    def batch(self) -> BatchRecord:
        found = load(self.ledger, batch_key(BATCH), BatchRecord)
        assert found is not None
        return found.record

    def shard(self, pool: str, n: int) -> ShardRecord:
        found = load(self.ledger, shard_key(BATCH, pool, n), ShardRecord)
        assert found is not None
        return found.record

    def claim(self, n: int = 0, pool: str = "local", runner: str = "r1") -> Lease:
        plan = batches.read_plan(self.ledger, self.batch)
        held = shards.claim(self.ledger, self.batch, plan, pool, n, runner=runner)
        assert isinstance(held, Lease)
        return held

    def run(self, runner: str = "r1", pool: str = "local") -> None:
        options = RunnerOptions(runner_id=runner, pool=pool, only=BATCH, is_janitor=False)
        run_alone(Runner(self.ledger, lambda: EchoEngine(num_slots=4), options))

    def results(self) -> list[dict[str, object]]:
        assert self.batch.results is not None
        return [json.loads(row) for row in b"".join(self.store.stream(self.batch.results.key)).splitlines()]


def finished(number: int, place: int) -> FinishedLine:
    outcome = Completion(choices=(Choice("ok", "end_turn"),), usage=Usage(input_tokens=2, output_tokens=1))
    return FinishedLine(place, "succeeded", encode_result(f"r{number}", outcome, "echo"), outcome.usage)


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


# -- ending


@pytest.mark.parametrize(
    ("reason", "status"), [("canceled", "canceled"), ("expired", "expired"), ("failed", "errored")]
)
def test_ending_keeps_what_is_committed_and_answers_the_rest(reason: str, status: str) -> None:
    world = World()
    world.create([line(number) for number in range(40)])
    held = world.claim()
    shards.checkpoint(world.ledger, held, [finished(0, 0)], has_dispatched=True)
    batches.end(world.ledger, BATCH, reason)  # type: ignore[arg-type]
    ended = ending.finish(world.ledger, BATCH, runner="r9")
    assert ended is not None
    assert (ended.state, ended.reason) == ("ended", reason)
    assert [row["status"] for row in world.results()] == ["succeeded"] + [status] * 39
    assert [row["custom_id"] for row in world.results()] == [f"r{number}" for number in range(40)]
    with pytest.raises(LeaseLost):
        shards.checkpoint(world.ledger, held, [finished(1, 1)], has_dispatched=True)


def test_an_assembly_that_is_stopped_leaves_nothing_and_any_process_does_it_again_at_once() -> None:
    world = World()
    world.create([line(number) for number in range(5)])
    held = world.claim()
    shards.checkpoint(world.ledger, held, [finished(number, number) for number in range(5)], has_dispatched=True)
    before = {entry.key for entry in world.store.list("")}
    assert ending.finish(world.ledger, BATCH, runner="r2", is_stopped=lambda: True) is None
    assert {entry.key for entry in world.store.list("")} - before == {assembly_key(BATCH)}
    assert world.batch.state == "open"
    ended = ending.finish(world.ledger, BATCH, runner="r3")
    assert ended is not None
    assert [row["status"] for row in world.results()] == ["succeeded"] * 5


def test_a_claim_that_races_with_a_cancel_is_closed() -> None:
    world = World()
    world.create([line(1)])
    plan, stale = batches.read_plan(world.ledger, world.batch), world.batch
    batches.end(world.ledger, BATCH, "canceled")
    assert shards.claim(world.ledger, stale, plan, "local", 0, runner="r1") == "closed"
    assert world.shard("local", 0).reason == "canceled"


def test_an_ended_batch_never_changes() -> None:
    world = World()
    world.create([line(number) for number in range(5)])
    world.run()
    before, results = world.batch, world.results()
    batches.end(world.ledger, BATCH, "canceled")
    ending.finish(world.ledger, BATCH, runner="r2")
    assert (world.batch, world.results()) == (before, results)


def test_who_comes_late_to_the_end_of_a_batch_does_not_look_for_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.create([line(number) for number in range(5)])
    held = world.claim()
    shards.checkpoint(world.ledger, held, [finished(n, n) for n in range(5)], has_dispatched=True)
    get = world.store.get

    def end_first(key: str) -> Object | None:
        """Before the late one takes its turn, another has ended the batch, and its lease on that has lapsed."""
        if key == assembly_key(BATCH):
            monkeypatch.setattr(world.store, "get", get)
            assert ending.finish(world.ledger, BATCH, runner="r2") is not None
            ending.sweep_parts(world.ledger, world.batch)
            world.clock.sleep(world.ledger.limits.lease_ttl_s + 1)
        return get(key)

    monkeypatch.setattr(world.store, "get", end_first)
    with structlog.testing.capture_logs() as events:
        late = ending.finish(world.ledger, BATCH, runner="r1")
    assert late is None
    assert world.batch.state == "ended"
    assert not [event for event in events if event["event"] == "part.lost"]


def test_a_turn_ends_although_the_answer_to_its_last_beat_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.create([line(0)])
    key = assembly_key(BATCH)
    turn = shards.claim_task(world.ledger, world.batch, key, "_assembly", runner="r1")
    assert turn is not None
    put = world.store.put

    def put_and_fall_silent(*args: Any, **options: Any) -> str:
        put(*args, **options)
        monkeypatch.setattr(world.store, "get", lose)
        raise StoreUnavailable("no answer")

    def lose(key: str) -> Object | None:
        raise StoreUnavailable("no answer")

    monkeypatch.setattr(world.store, "put", put_and_fall_silent)
    world.clock.sleep(world.ledger.limits.checkpoint_s)
    shards.beat(world.ledger, turn)
    monkeypatch.undo()
    shards.finish(world.ledger, turn)
    found = load(world.ledger, key, ShardRecord)
    assert found is not None
    assert found.record.state == "done"


def test_who_assembles_what_another_has_ended_and_swept_says_nothing_of_lost_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    world.create([line(number) for number in range(5)])
    held = world.claim()
    shards.checkpoint(world.ledger, held, [finished(n, n) for n in range(5)], has_dispatched=True)
    get = world.store.get

    def sleep_long(key: str) -> Object | None:
        """Before the first part is read: paused beyond the lease, while another ends the batch and tidies."""
        if "/parts/" in key:
            monkeypatch.setattr(world.store, "get", get)
            world.clock.sleep(world.ledger.limits.lease_ttl_s + 1)
            assert ending.finish(world.ledger, BATCH, runner="r2") is not None
            ending.sweep_parts(world.ledger, world.batch)
        return get(key)

    monkeypatch.setattr(world.store, "get", sleep_long)
    with structlog.testing.capture_logs() as events:
        late = ending.finish(world.ledger, BATCH, runner="r1")
    assert late is None
    assert world.batch.counts is not None
    assert world.batch.counts.succeeded == 5
    assert not [event for event in events if event["event"] == "part.lost"]


def test_who_finds_the_end_of_a_batch_in_other_hands_reads_no_record_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.create([line(number) for number in range(200)])
    world.run()
    fresh = lease.fresh("_assembly", 0, 1, lease="x", runner="busy")
    world.store.delete(assembly_key(BATCH))
    swap(world.ledger, assembly_key(BATCH), fresh, None)
    stored = load(world.ledger, batch_key(BATCH), BatchRecord)
    assert stored is not None
    swap(world.ledger, batch_key(BATCH), replace(stored.record, state="open", write_id="again"), stored)
    asked: list[str] = []
    get = world.store.get

    def noting(key: str) -> Object | None:
        asked.append(key)
        return get(key)

    monkeypatch.setattr(world.store, "get", noting)
    assert ending.finish(world.ledger, BATCH, runner="r2") is None
    assert asked == [batch_key(BATCH), assembly_key(BATCH)]


def test_a_changed_input_ends_the_batch_and_keeps_what_is_done() -> None:
    world = World()
    world.create([line(number) for number in range(40)])
    held = world.claim()
    shards.checkpoint(world.ledger, held, [finished(n, n) for n in range(32)], has_dispatched=True)
    world.store.put(input_key(BATCH, "n"), b"something else")
    with pytest.raises(ObjectChanged):
        list(world.store.stream(input_key(BATCH, "n"), match=world.batch.input.etag))
    world.run("r2")
    assert world.batch.reason == "input_changed"
    rows = world.results()
    assert [row["status"] for row in rows] == ["succeeded"] * 32 + ["errored"] * 8
    assert rows[-1]["error"]["type"] == "input_changed"  # type: ignore[index]


def test_of_a_changed_input_an_assembly_tells_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner_module, "RANGE_LINES_MIN", 4)
    world = World()
    planned = world.create([line(number) for number in range(40)])
    assert len(planned.plan.ranges) == 10
    world.store.put(input_key(BATCH, "n"), b"something else")
    batches.end(world.ledger, BATCH, "input_changed")
    with structlog.testing.capture_logs() as events:
        ending.finish(world.ledger, BATCH, runner="r")
    assert [event["event"] for event in events].count("input.changed") == 1
    batch = world.batch
    assert batch.errors is not None
    assert (batch.state, batch.total, batch.errors.num_lines) == ("ended", 40, 0)


def test_a_part_that_is_lost_makes_its_lines_storage_errors() -> None:
    world = World()
    world.create([line(number) for number in range(3)])
    held = world.claim()
    shards.checkpoint(world.ledger, held, [finished(0, 0), finished(1, 1)], has_dispatched=True)
    shards.checkpoint(world.ledger, held, [finished(2, 2)], has_dispatched=True)
    world.store.delete(held.record.parts[0].key)
    ending.finish(world.ledger, BATCH, runner="r1")
    assert [row["status"] for row in world.results()] == ["errored", "errored", "succeeded"]
    assert world.results()[0]["error"]["type"] == "storage_error"  # type: ignore[index]
    assert world.results()[0]["custom_id"] == "r0"


def test_the_errors_file_holds_the_input_lines_that_did_not_succeed() -> None:
    world = World()
    rows = [line(1), b"{rubbish", line(2)]
    world.create(rows)
    world.run()
    assert world.batch.errors is not None
    assert b"".join(world.store.stream(world.batch.errors.key)) == rows[1] + b"\n"


# -- two pools, status, janitoring


def test_two_pools_answer_one_batch_in_input_order() -> None:
    world = World()
    rows = [line(number, metadata={"model_hint": ("mistral", "llama")[number % 2]}) for number in range(50)]
    world.create(rows, TWO_POOLS)
    mistral = RunnerOptions(runner_id="m", pool="mistral", is_janitor=False)
    llama = RunnerOptions(runner_id="l", pool="llama", only=BATCH, is_janitor=False)
    first = Runner(world.ledger, lambda: EchoEngine(num_slots=4), mistral)
    drive(first, lambda: StatusReader(world.ledger).read(BATCH).counts.finished == 25)  # type: ignore[union-attr]
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
    counts = [status.counts.finished for status in seen if status is not None]
    assert counts == [0, 1, 1, 40]
    assert all(status is not None and status.pending + status.counts.finished == 40 for status in seen)


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
