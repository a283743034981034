"""A batch that exists before it is planned: exactly one plan, whichever process plans, dies, cancels or is late."""

import gzip
import json
import random

import pytest

from batchfile import Ledger
from batchfile.errors import BatchDamaged, InvalidFile
from batchfile.testing import FaultyStore, ManualClock, MemoryStore
from batchfile.types import Defaults, RoutingTable
from tests.helpers.inbox import FileRecord, Janitor, stored_files
from tests.helpers.inbox import source_of_file as source
from tests.helpers.ledger import BatchRecord, Cursor, StatusReader, batches, ending, iter_live, keys, shards
from tests.helpers.plan import pending
from tests.helpers.plan import planner as planner_module

CHAT = "/v1/chat/completions"
POOLS = RoutingTable(pools={"mistral": ("m",), "llama": ("l",)})


class World:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock)
        self.ledger = Ledger(store=self.store, clock=self.clock, rng=random.Random(7))

    def file(self, *models: str, is_packed: bool = False) -> FileRecord:
        rows = [
            {"custom_id": f"r{n}", "method": "POST", "url": CHAT, "body": {"model": model, "messages": []}}
            for n, model in enumerate(models or ("m", "l", "m"))
        ]
        data = "\n".join(map(json.dumps, rows)).encode()
        data = gzip.compress(data) if is_packed else data
        return stored_files.store_file(
            self.ledger, "acme", [data], filename="f", purpose="batch", kept_s=30 * 86400.0, bytes_max=10**6
        )

    def create(self, file: FileRecord | None = None, batch_id: str = "b", **more: float) -> BatchRecord:
        file = file or self.file()
        made_of = source(self.ledger, file, endpoint=CHAT, requests_max=1000, **more)
        draft = batches.Draft(
            batch_id=batch_id, routing=POOLS, defaults=Defaults(), tenant="acme", created_at=self.clock.now()
        )
        return pending.create(self.ledger, draft, made_of)

    def read(self, batch_id: str = "b") -> BatchRecord:
        batch = batches.read_batch(self.ledger, batch_id)
        assert batch is not None
        return batch


def test_a_batch_opens_with_its_plan_and_its_entries() -> None:
    world = World()
    assert world.create().state == "planning"
    opened = pending.plan(world.ledger, "b", runner="r")
    assert opened is not None
    assert (opened.state, opened.total, opened.planned_at) == ("open", 3, world.clock.now())
    assert sorted(batches.read_plan(world.ledger, opened).pools) == ["llama", "mistral"]
    assert [keys.queue_batch_id(entry.key) for entry in world.store.list("queue/")] == ["b", "b"]
    assert pending.plan(world.ledger, "b", runner="r") == opened


def test_a_janitor_plans_what_nobody_planned() -> None:
    world = World()
    world.create()
    Janitor(world.ledger, runner="s").tick()
    assert world.read().state == "open"


def test_while_one_plans_the_others_leave_it_and_take_over_when_it_is_silent() -> None:
    world = World()
    world.create()
    key = keys.planning_key("b")
    assert shards.claim_task(world.ledger, world.read(), key, keys.PLANNING_POOL, runner="first") is not None
    assert pending.plan(world.ledger, "b", runner="second") is None
    world.clock.sleep(world.ledger.limits.lease_ttl_s)
    taken = pending.plan(world.ledger, "b", runner="second")
    assert taken is not None
    assert taken.state == "open"


def test_a_late_planner_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.create()
    slow = planner_module.plan_input

    def overtaken(*args: object, **more: object) -> object:
        planned = slow(*args, **more)  # type: ignore[arg-type]
        monkeypatch.setattr(pending, "plan_input", slow)
        world.clock.sleep(world.ledger.limits.lease_ttl_s)
        pending.plan(world.ledger, "b", runner="second")
        return planned

    monkeypatch.setattr(pending, "plan_input", overtaken)
    late = pending.plan(world.ledger, "b", runner="first")
    assert late == world.read()
    assert late is not None
    assert late.seq == 2


def test_a_batch_that_is_cancelled_before_it_has_a_plan_ends_with_nothing() -> None:
    world = World()
    world.create()
    batches.end(world.ledger, "b", "canceled")
    reader = StatusReader(world.ledger)
    found = reader.read("b")
    assert found is not None
    assert (found.status.state, found.status.pending) == ("ending", 0)
    assert list(iter_live(world.ledger, "b", Cursor())) == []
    ended = ending.finish(world.ledger, "b", runner="r")
    assert ended is not None
    assert (ended.state, ended.reason, ended.results, ended.total) == ("ended", "canceled", None, 0)
    assert pending.plan(world.ledger, "b", runner="r") == ended


def test_a_cancel_while_it_is_planned_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.create()
    slow = planner_module.plan_input

    def cancelled(*args: object, **more: object) -> object:
        batches.end(world.ledger, "b", "canceled")
        return slow(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(pending, "plan_input", cancelled)
    found = pending.plan(world.ledger, "b", runner="r")
    assert found is not None
    assert (found.state, found.plan_key) == ("ending", "")
    Janitor(world.ledger, runner="s").tick()
    assert world.read().state == "ended"


def test_a_batch_expires_also_before_it_has_a_plan() -> None:
    world = World()
    world.create()
    world.clock.sleep(world.ledger.limits.completion_window_s)
    Janitor(world.ledger, runner="s").tick()
    assert (world.read().state, world.read().reason) == ("ended", "expired")


def test_a_file_without_its_bytes_makes_no_batch_or_a_failed_one() -> None:
    world = World()
    file = world.file()
    world.create(file)
    world.store.delete(file.key)
    failed = pending.plan(world.ledger, "b", runner="r")
    assert failed is not None
    assert (failed.state, failed.reason, len(failed.problems)) == ("ended", "failed", 1)
    with pytest.raises(InvalidFile, match="upload"):
        world.create(file, "c")


def test_a_failed_batch_has_no_plan_no_entries_and_at_most_a_hundred_errors() -> None:
    world = World()
    world.create(world.file(*["none"] * 300))
    failed = pending.plan(world.ledger, "b", runner="r")
    assert failed is not None
    assert [error.line for error in failed.problems] == list(range(1, 101))
    assert {error.code for error in failed.problems} == {"model_not_found"}
    assert list(world.store.list("queue/")) == []
    assert failed.plan_key == ""


def test_too_many_requests_are_one_error() -> None:
    world = World()
    world.create(world.file(*["m"] * 1001))
    failed = pending.plan(world.ledger, "b", runner="r")
    assert failed is not None
    assert [error.code for error in failed.problems] == ["too_many_tasks"]


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_create_that_is_repeated_finds_its_own_batch_and_no_other(is_packed: bool) -> None:
    world = World()
    file = world.file(is_packed=is_packed)
    first = world.create(file)
    assert world.create(file) == first
    planned = pending.plan(world.ledger, "b", runner="p")
    assert planned is not None
    assert planned.state == "open"
    assert (planned.input.key != file.key) == is_packed
    assert world.create(file) == planned
    world.clock.sleep(1.0)
    with pytest.raises(BatchDamaged):
        world.create(world.file())


class Gone(BaseException):
    """The process is no more: nothing may catch this and go on."""


def make_and_plan(world: World, file: FileRecord, ledger: Ledger, created_at: float) -> None:
    made_of = source(ledger, file, endpoint=CHAT, requests_max=1000)
    draft = batches.Draft(
        batch_id="b", routing=POOLS, defaults=Defaults(), tenant="acme", created_at=created_at, metadata={}
    )
    pending.create(ledger, draft, made_of)
    pending.plan(ledger, "b", runner=f"r{ledger.rng.random()}")


def num_writes() -> int:
    world, seen = World(), 0

    def count(number: int, verb: str, key: str, phase: str) -> None:
        nonlocal seen
        seen = number

    file = world.file()
    store = FaultyStore(world.store, on_call=count)
    make_and_plan(world, file, Ledger(store=store, clock=world.clock, rng=random.Random(1)), world.clock.now())
    return seen


@pytest.mark.parametrize("phase", ["before", "after"])
@pytest.mark.parametrize("at", range(1, num_writes() + 1))
def test_a_crash_at_a_write_and_a_repeated_create_make_one_batch_with_one_plan(at: int, phase: str) -> None:
    world = World()
    file, created_at = world.file(), world.clock.now()

    def crash(number: int, verb: str, key: str, when: str) -> None:
        if number > at or (number == at and when == phase):
            raise Gone

    first = Ledger(store=FaultyStore(world.store, on_call=crash), clock=world.clock, rng=random.Random(1))
    with pytest.raises(Gone):
        make_and_plan(world, file, first, created_at)
    second = Ledger(store=world.store, clock=world.clock, rng=random.Random(2))
    for _ in range(2):  # the first time it asks whether the other one lives
        world.clock.sleep(world.ledger.limits.lease_ttl_s)
        make_and_plan(world, file, second, created_at)
    batch = world.read()
    assert (batch.state, batch.total, batch.created_at) == ("open", 3, created_at)
    assert sum(span.num_lines for span in batches.read_plan(world.ledger, batch).ranges) == 3
    assert len(list(world.store.list("queue/"))) == 2
    assert len(list(world.store.list("index/"))) == 1


def test_results_stay_for_as_long_as_was_asked_and_the_batch_for_its_retention_at_least() -> None:
    world = World()
    limits = world.ledger.limits
    for batch_id, kept_s in (("short", 3600.0), ("long", 10 * limits.retention_s)):
        world.create(None, batch_id, kept_s=kept_s)
        batches.end(world.ledger, batch_id, "canceled")
        ending.finish(world.ledger, batch_id, runner="r")
    janitor = Janitor(world.ledger, runner="s")
    world.clock.sleep(limits.retention_s - 1)
    janitor.tick()
    assert world.read("short").state == "ended"
    world.clock.sleep(3601.0)
    janitor.tick()
    assert batches.read_batch(world.ledger, "short") is None
    world.clock.sleep(8 * limits.retention_s)
    janitor.tick()
    assert world.read("long").state == "ended"
    world.clock.sleep(2 * limits.retention_s)
    janitor.tick()
    assert batches.read_batch(world.ledger, "long") is None
