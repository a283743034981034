"""Status and scale over a store: what a look costs, what it never does, and how much is remembered."""

import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from batchfile import Ledger
from batchfile.errors import BatchDamaged
from batchfile.testing import ManualClock, MemoryStore
from batchfile.types import Choice, Completion, Defaults, Failure, RoutingTable, Usage
from tests.helpers.ledger import (
    BatchRecord,
    BatchSnapshot,
    HeartbeatRecord,
    Lease,
    PoolProgress,
    Scale,
    StatusReader,
    batches,
    ending,
    keys,
    read_scale,
    retention,
    shards,
    status,
    write_heartbeat,
)
from tests.helpers.lines import FinishedLine, encode_result, processing_status
from tests.helpers.plan import plan_input
from tests.helpers.service import stage_counts
from tests.helpers.store import MeteredStore

TWO_POOLS = RoutingTable(pools={"mistral": ("m",), "llama": ("l",)})


class World:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MeteredStore(MemoryStore(self.clock))
        self.ledger = Ledger(store=self.store, clock=self.clock, rng=random.Random(7))
        self.reader = StatusReader(self.ledger)

    def create(self, batch_id: str, num: int, *, lines_per_range: int = 4, num_bad: int = 0) -> BatchRecord:
        """Every fourth request is llama's, the others are mistral's."""
        rows = [
            json.dumps(
                {
                    "custom_id": f"r{n}",
                    "params": {"messages": [{"role": "user", "content": "hello"}]},
                    "metadata": {"model_hint": "mistral" if n % 4 else "llama"},
                }
            ).encode()
            for n in range(num)
        ]
        key = keys.input_key(batch_id, "n")
        self.store.put(key, b"\n".join([*rows, *[b"{no json"] * num_bad]))
        planned = plan_input(self.ledger, batch_id, key, routing=TWO_POOLS, lines_per_range=lines_per_range)
        draft = batches.Draft(batch_id=batch_id, routing=TWO_POOLS, defaults=Defaults())
        return batches.create(self.ledger, draft, planned)

    def claim(self, batch_id: str, pool: str, n: int) -> Lease:
        batch = batches.read_batch(self.ledger, batch_id)
        assert batch is not None
        held = shards.claim(self.ledger, batch, batches.read_plan(self.ledger, batch), pool, n, runner="r1")
        assert isinstance(held, Lease)
        return held

    def answer(self, held: Lease, *places: int) -> None:
        outcome = Completion(choices=(Choice("ok", "end_turn"),), usage=Usage(input_tokens=2, output_tokens=1))
        lines = [FinishedLine(n, "succeeded", encode_result(f"r{n}", outcome, "m"), outcome.usage) for n in places]
        shards.checkpoint(self.ledger, held, lines, has_dispatched=True)

    def look(self, batch_id: str = "b") -> BatchSnapshot:
        found = self.reader.read(batch_id)
        assert found is not None
        return found

    def num_requests(self) -> int:
        return sum(figure.num for figure in self.store.figures().values())


def test_a_batch_tells_how_far_each_of_its_pools_is() -> None:
    world = World()
    world.create("b", 16, num_bad=2)
    done, begun = world.claim("b", "mistral", 0), world.claim("b", "mistral", 1)
    world.answer(done, 1, 2, 3)
    world.answer(begun, 1)
    found = world.look()
    assert found.status.pools == {
        "llama": PoolProgress(num_shards=4, num_requests=4, num_done=0, num_leased=0, num_finished=0),
        "mistral": PoolProgress(num_shards=4, num_requests=12, num_done=1, num_leased=1, num_finished=4),
    }
    assert found.status.pools["mistral"].num_pending_shards == 2
    assert (found.status.counts.succeeded, found.status.counts.errored, found.status.pending) == (4, 2, 12)
    assert found.status.usage == Usage(input_tokens=8, output_tokens=4)


def test_a_batch_is_in_work_from_the_first_claim_on_whatever_its_planner_rejected() -> None:
    world = World()
    world.create("b", 4, num_bad=2)
    found = world.look()
    assert (processing_status(found.batch.state, found.num_records), found.status.counts.errored) == ("submitted", 2)
    world.claim("b", "mistral", 0)
    found = world.look()
    assert processing_status(found.batch.state, found.num_records) == "processing"


def test_a_batch_whose_lines_were_all_rejected_is_submitted_until_it_has_ended() -> None:
    world = World()
    world.create("b", 0, num_bad=2)
    found = world.look()
    assert processing_status(found.batch.state, found.num_records) == "submitted"
    ending.finish(world.ledger, "b", runner="r")
    assert world.look().batch.state == "ended"


def test_a_second_look_costs_the_batch_a_listing_and_what_changed() -> None:
    world = World()
    world.create("b", 400)
    held = [world.claim("b", "mistral", n) for n in range(100)]
    world.look()
    before = world.num_requests()
    world.look()
    assert world.num_requests() - before == 2
    for n in (3, 50):
        world.answer(held[n], 1)
    before = world.num_requests()
    assert world.look().status.counts.succeeded == 2
    assert world.num_requests() - before == 4


def test_sums_are_what_adding_up_all_records_gives() -> None:
    world = World()
    world.create("b", 200)
    chance, held = random.Random(5), [world.claim("b", "mistral", n) for n in range(50)]
    left = {n: [1, 2, 3] for n in range(50)}
    for _ in range(60):
        n = chance.choice([n for n in left if left[n]])
        world.answer(held[n], left[n].pop())
        if chance.random() < 0.3:
            world.look()
    assert world.look() == StatusReader(world.ledger).read("b")
    assert world.look().status.counts.succeeded == 60


def test_an_ended_batch_costs_one_request_and_its_time_does_not_go_back() -> None:
    world = World()
    world.create("b", 4)
    world.clock.sleep(100.0)
    batches.end(world.ledger, "b", "canceled")
    still_open = world.look()
    early = Ledger(store=world.store, clock=ManualClock(now=world.clock.now() - 50), rng=random.Random(1))
    world.clock.sleep(10.0)
    shards.close(world.ledger, "b", batches.read_plan(world.ledger, still_open.batch), "llama", 0, reason="canceled")
    newest = world.look().status.updated_at
    assert newest > still_open.status.updated_at
    ending.finish(early, "b", runner="r")  # by a clock that is behind
    before = world.num_requests()
    ended = world.look()
    assert world.num_requests() - before == 1
    assert ended.batch.state == "ended"
    assert ended.batch.ended_at is not None
    assert ended.batch.ended_at < newest
    assert ended.status.updated_at == newest == world.look().status.updated_at


def test_a_batch_that_is_gone_is_forgotten() -> None:
    world = World()
    world.create("b", 4)
    world.look()
    batches.end(world.ledger, "b", "canceled")
    ending.finish(world.ledger, "b", runner="r")
    retention.delete(world.ledger, "b")
    assert world.reader.read("b") is None
    assert world.reader.read("never") is None


def test_a_reader_remembers_a_bounded_number_of_batches_and_of_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "BATCHES_MAX", 3)
    monkeypatch.setattr(status, "RECORDS_MAX", 5)
    world = World()
    for name in "abcd":
        world.create(name, 4)
        world.look(name)
    assert list(world.reader._views) == ["b", "c", "d"]
    for name in "bcd":
        world.create(f"large-{name}", 16)
        for n in range(4):
            world.claim(f"large-{name}", "mistral", n)
        world.look(f"large-{name}")
    assert list(world.reader._views) == ["large-d"]


def test_many_threads_share_looks_and_counts_never_go_back() -> None:
    world = World()
    world.create("b", 400)
    held = [world.claim("b", "mistral", n) for n in range(100)]
    is_over, seen = threading.Event(), list[list[int]]()

    def poll() -> None:
        mine = list[int]()
        while not is_over.is_set():
            mine.append(world.look().status.counts.finished)
        mine.append(world.look().status.counts.finished)
        seen.append(mine)

    with ThreadPoolExecutor(8) as threads:
        polls = [threads.submit(poll) for _ in range(8)]
        try:
            for one in held:
                world.answer(one, 1, 2, 3)
        finally:
            is_over.set()
        for one_poll in polls:
            one_poll.result()
    assert all(mine == sorted(mine) and mine[-1] == 300 for mine in seen)


def test_a_damaged_batch_is_told_alone_and_left_out_among_many() -> None:
    world = World()
    for name in "abc":
        world.create(name, 4)
    world.store.put(keys.batch_key("b"), b"{")
    assert [found.batch.batch_id for found in world.reader.read_many(["a", "b", "gone", "c"])] == ["a", "c"]
    with pytest.raises(BatchDamaged):
        world.reader.read("b")


def test_scale_adds_up_what_a_pool_has_left_in_its_open_batches() -> None:
    world = World()
    first = world.create("a", 16)
    world.clock.sleep(60.0)
    world.create("b", 8)
    world.create("canceled", 8)
    batches.end(world.ledger, "canceled", "canceled")
    world.answer(world.claim("a", "mistral", 0), 1, 2, 3)
    world.answer(world.claim("a", "mistral", 1), 1)
    alive = HeartbeatRecord(pool="mistral", runner_id="r1", model="m", engine="echo", state="running", started_at=0.0)
    write_heartbeat(world.ledger, alive)
    assert read_scale(world.reader, "mistral") == Scale(
        pool="mistral",
        pending_shards=2 + 2,
        pending_requests=8 + 6,
        leased_shards=1,
        live_runners=1,
        open_batches=2,
        oldest_created_at=first.created_at,
    )
    assert read_scale(world.reader, "unknown") == Scale(pool="unknown")


def test_a_batch_in_which_a_pool_has_nothing_left_is_not_in_its_scale() -> None:
    world = World()
    world.create("a", 4)
    world.answer(world.claim("a", "mistral", 0), 1, 2, 3)
    assert read_scale(world.reader, "mistral") == Scale(pool="mistral")
    assert read_scale(world.reader, "llama").pending_requests == 1


def test_for_a_stage_every_finished_request_that_did_not_succeed_is_errored() -> None:
    world = World()
    world.create("b", 8, num_bad=2)
    world.answer(world.claim("b", "mistral", 0), 1, 2)
    batches.end(world.ledger, "b", "canceled")
    ending.finish(world.ledger, "b", runner="r")
    counts = stage_counts(world.look().status)
    assert (counts.total, counts.succeeded, counts.errored, counts.pending) == (10, 2, 8, 0)


def fail(world: World, held: Lease, *places: int, why: str = "answer {} is too long") -> None:
    lines = [
        FinishedLine(n, "errored", encode_result(f"r{n}", Failure(type="model_error", message=why.format(n)), ""))
        for n in places
    ]
    shards.checkpoint(world.ledger, held, lines, has_dispatched=True)


def test_a_running_batch_says_why_requests_failed_without_reading_a_part() -> None:
    world = World()
    world.create("b", 16, num_bad=2)
    first, second = world.claim("b", "mistral", 0), world.claim("b", "mistral", 2)
    fail(world, first, 1, 2)
    fail(world, second, 1)
    fail(world, second, 2, 3, why="another reason")
    before = {call: figure.num for call, figure in world.store.figures().items()}
    found = world.look().status
    assert [
        (group.type, group.message, group.num_requests, group.line, group.custom_id) for group in found.failures
    ] == [
        ("model_error", "answer … is too long", 3, 2, "r1"),
        ("invalid_request_error", "is not valid JSON: unexpected … at column …", 2, 17, None),
        ("model_error", "another reason", 2, 11, "r2"),
    ]
    assert found.failures[0].advice.startswith("Run it again.")
    assert (found.errored, found.rejected, found.num_failed) == (7, 2, 5)
    gets = sum(figure.num - before.get(call, 0) for call, figure in world.store.figures().items() if call.verb == "get")
    assert gets <= 1 + 1 + 3, "batch.json, the plan, and the records"
    fail(world, first, 3)
    assert world.look().status.failures[0].num_requests == 4
    assert world.look() == StatusReader(world.ledger).read("b")


def test_the_end_has_the_reasons_of_all_also_of_those_that_never_ran() -> None:
    world = World()
    world.create("b", 8, num_bad=1)
    held = world.claim("b", "mistral", 0)
    fail(world, held, 1)
    world.answer(held, 2)
    batches.end(world.ledger, "b", "canceled")
    batch = ending.finish(world.ledger, "b", runner="r")
    assert batch is not None
    assert batch.reasons is not None
    assert (batch.counts.canceled, batch.counts.rejected, batch.counts.failed) == (6, 1, 1)
    assert [(group.type, group.num_requests, group.line) for group in batch.failures] == [
        ("canceled", 6, 1),
        ("model_error", 1, 2),
        ("invalid_request_error", 1, 9),
    ]
    lines = [json.loads(row) for row in b"".join(world.store.stream(batch.reasons.key)).splitlines()]
    assert [(line["line"], line["custom_id"], line["status"]) for line in lines] == [
        (1, "r0", "canceled"),
        (2, "r1", "errored"),
        (4, "r3", "canceled"),
        *((n + 1, f"r{n}", "canceled") for n in range(4, 8)),
        (9, None, "errored"),
    ]
    assert batch.errors is not None
    assert batch.errors.num_lines == batch.reasons.num_lines == 8
    assert "Run it again" not in world.look().status.failures[0].advice
    assert world.look().status.failures[0].advice.startswith("The batch was canceled")


def test_a_record_of_an_older_version_has_no_reasons_and_a_damaged_one_hides_only_its_own() -> None:
    world = World()
    world.create("b", 16)
    older, newer = world.claim("b", "mistral", 0), world.claim("b", "mistral", 1)
    fail(world, older, 1)
    fail(world, newer, 1, why="it answered {}")
    document = json.loads(world.store.get(older.key).data)
    del document["failures"], document["counts"]["rejected"]
    world.store.put(older.key, json.dumps(document).encode())
    found = world.look().status
    assert (found.errored, [group.message for group in found.failures]) == (2, ["it answered …"])
    world.store.put(older.key, b"{rubbish")
    reader = StatusReader(world.ledger)
    ill = reader.read("b")
    assert ill is not None
    assert ill.problem is not None
    assert [group.message for group in ill.status.failures] == ["it answered …"]
