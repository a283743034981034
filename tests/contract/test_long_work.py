"""Long work is done aside: a large file that is planned, or a large batch that is ended, holds up nothing short."""

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from batchfile import Ledger, Runner, RunnerOptions
from batchfile.errors import BatchDamaged, StoreError, StoreUnavailable
from batchfile.testing import EchoEngine, ManualClock, MemoryStore
from batchfile.types import Defaults, RoutingTable, Usage
from tests.helpers.inbox import (
    DroppedFile,
    FileRecord,
    Janitor,
    LongWork,
    inbox_records,
    is_long,
    long_work,
    stored_files,
)
from tests.helpers.ledger import BatchRecord, Lease, SetAside, batches, ending, keys, shards
from tests.helpers.lines import URL, FinishedLine
from tests.helpers.plan import pending, plan_input
from tests.helpers.service import BackgroundTasks
from tests.helpers.store import Clock, Entry

POOL = "one"
ROUTING = RoutingTable(pools={POOL: ("m",)})
LARGE = 50  # requests; 10 are few
WAIT_S = 1200.0  # only against a hang: no test depends on a machine's speed


class Slow(MemoryStore):
    """A stream of what is named here waits until it is let go. So does a listing of `slow_list`."""

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__(clock)
        self.slow: set[str] = set()
        self.slow_list = ""
        self.let_go = threading.Event()
        self.num_waiting = 0

    def stream(self, key: str, start: int = 0, end: int | None = None, *, match: str | None = None) -> Iterator[bytes]:
        if key in self.slow:
            self._wait()
        return super().stream(key, start, end, match=match)

    def list(self, prefix: str, *, after: str = "") -> Iterator[Entry]:
        if prefix == self.slow_list:
            self._wait()
        return super().list(prefix, after=after)

    def _wait(self) -> None:
        self.num_waiting += 1
        assert self.let_go.wait(WAIT_S)


class World:
    def __init__(self) -> None:
        self.store = Slow()
        self.ledger = Ledger(store=self.store, rng=random.Random(3))

    def create(self, batch_id: str, num_requests: int = 10) -> BatchRecord:
        """Open, and no shard of it is begun."""
        key = keys.input_key(batch_id, "n")
        self.store.put(key, body(num_requests))
        planned = plan_input(self.ledger, batch_id, key, routing=ROUTING)
        draft = batches.Draft(batch_id=batch_id, routing=ROUTING, defaults=Defaults())
        return batches.create(self.ledger, draft, planned)

    def store_file(self, batch_id: str, num_requests: int = LARGE) -> BatchRecord:
        """Planning, and its file is slow to read."""
        data = body(num_requests)
        self.store.put(f"files/{batch_id}", data)
        self.store.slow.add(f"files/{batch_id}")
        file = FileRecord(
            file_id=batch_id,
            tenant="default",
            filename="f",
            purpose="batch",
            key=f"files/{batch_id}",
            size=len(data),
            sha256="",
            created_at=0.0,
            expires_at=0.0,
        )
        draft = batches.Draft(batch_id=batch_id, routing=ROUTING, defaults=Defaults(), created_at=time.time())
        made_of = stored_files.source(self.ledger, file, endpoint=URL, requests_max=100)
        return pending.create(self.ledger, draft, made_of)

    def work(self, batch: BatchRecord) -> None:
        plan = batches.read_plan(self.ledger, batch)
        for n in range(len(plan.ranges)):
            held = shards.claim(self.ledger, batch, plan, POOL, n, runner="r")
            assert isinstance(held, Lease)
            lines = [FinishedLine(line, "succeeded", b"{}", Usage()) for line in range(held.range.num_lines)]
            shards.checkpoint(self.ledger, held, lines, has_dispatched=True)

    def state(self, batch_id: str) -> str:
        batch = batches.read_batch(self.ledger, batch_id)
        return "" if batch is None else batch.state


def body(num_requests: int) -> bytes:
    params = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    rows = ({"custom_id": f"r{n}", "method": "POST", "url": URL, "body": params} for n in range(num_requests))
    return "\n".join(map(json.dumps, rows)).encode()


def wait_for(is_true: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + WAIT_S
    while not is_true():
        assert time.monotonic() < ends_at, "it took too long"
        time.sleep(0.005)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(long_work, "LONG_BYTES", len(body(LARGE)) - 1)
    found = World()
    yield found
    found.store.let_go.set()


def test_large_files_that_are_planned_hold_up_no_cancel(world: World) -> None:
    ended: list[str] = []
    long = LongWork(world.ledger, "api", num_threads=2)
    background = BackgroundTasks(world.ledger, "api", lambda batch: ended.append(batch.batch_id), long.take)
    background.start()
    for batch_id in ("file1", "file2", "file3"):
        world.store_file(batch_id)
        background.wake(batch_id)
    wait_for(lambda: world.store.num_waiting == 2)
    world.create("small")
    batches.end(world.ledger, "small", "canceled")
    background.wake("small")
    wait_for(lambda: ended == ["small"])
    assert [world.state(batch_id) for batch_id in ("file1", "file2", "file3")] == ["planning"] * 3
    world.store.let_go.set()
    wait_for(lambda: all(world.state(batch_id) == "open" for batch_id in ("file1", "file2", "file3")))
    background.stop()


def test_a_large_batch_that_is_ended_holds_up_no_other_end(world: World) -> None:
    ended: list[str] = []
    long = LongWork(world.ledger, "api", on_ended=lambda batch: ended.append(batch.batch_id))
    background = BackgroundTasks(world.ledger, "api", lambda batch: ended.append(batch.batch_id), long.take)
    background.start()
    large = [world.create(f"large{n}", LARGE) for n in range(3)]
    for batch in large:
        world.store.slow.add(batch.input.key)
        batches.end(world.ledger, batch.batch_id, "canceled")
        background.wake(batch.batch_id)
    wait_for(lambda: world.store.num_waiting == 1)
    world.create("small")
    batches.end(world.ledger, "small", "canceled")
    background.wake("small")
    wait_for(lambda: ended == ["small"])
    world.store.let_go.set()
    wait_for(lambda: sorted(ended) == ["large0", "large1", "large2", "small"])
    background.stop()


def test_a_janitor_goes_on_while_a_large_file_is_planned(world: World) -> None:
    world.store_file("file")
    world.work(world.create("complete"))
    long = LongWork(world.ledger, "s")
    janitor = Janitor(world.ledger, runner="s", defer=long.take)
    janitor.tick()
    wait_for(lambda: world.store.num_waiting == 1)
    assert world.state("complete") == "ended"
    janitor.tick()
    world.store.let_go.set()
    wait_for(lambda: world.state("file") == "open")
    assert world.store.num_waiting in {1, 2}, "it was planned once: read twice at most"


def test_a_runner_ends_batches_while_its_janitor_is_held_up(world: World) -> None:
    world.store.slow_list = keys.INDEX_PREFIX
    world.create("small")
    runner = Runner(world.ledger, lambda: EchoEngine(num_slots=4), RunnerOptions(runner_id="r", pool=POOL))
    thread = threading.Thread(target=runner.run)
    thread.start()
    wait_for(lambda: world.store.num_waiting == 1)
    wait_for(lambda: world.state("small") == "ended")
    world.store.let_go.set()
    runner.stop()
    thread.join(WAIT_S)
    assert not thread.is_alive()


def test_a_runner_ends_short_batches_while_it_ends_a_large_one(world: World) -> None:
    world.work(world.create("large", LARGE))
    get = world.store.get

    def slowly(key: str):  # type: ignore[no-untyped-def]
        if "large/parts/" in key:
            world.store._wait()
        return get(key)

    world.store.get = slowly  # type: ignore[method-assign]
    runner = Runner(world.ledger, lambda: EchoEngine(num_slots=4), RunnerOptions(runner_id="r", pool=POOL))
    thread = threading.Thread(target=runner.run)
    thread.start()
    wait_for(lambda: world.store.num_waiting == 1)
    world.create("small")
    wait_for(lambda: world.state("small") == "ended")
    runner.stop()
    thread.join(0.2)
    assert thread.is_alive(), "it waits for the end that it has begun"
    world.store.let_go.set()
    thread.join(WAIT_S)
    assert world.state("large") == "ended"


def test_a_batch_is_begun_once_however_often_it_is_given(world: World) -> None:
    long = LongWork(world.ledger, "s", num_threads=4)
    batch = world.store_file("file")
    assert all(long.take(batch) for _ in range(5))
    wait_for(lambda: world.store.num_waiting == 1)
    assert long.take(batch)
    world.store.let_go.set()
    wait_for(lambda: world.state("file") == "open")


@pytest.mark.parametrize(
    "error", [StoreUnavailable("500"), StoreError("403"), BatchDamaged("torn"), ValueError("ours")]
)
def test_what_failed_is_set_aside_and_taken_again_after_its_pause(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    clock = ManualClock()
    world.ledger = replace(world.ledger, clock=clock)
    batch = world.store_file("file")
    world.store.let_go.set()
    aside = SetAside(world.ledger)
    long = LongWork(world.ledger, "s", aside=aside)
    num_tries = 0

    def fail(*_: object, **__: object) -> None:
        nonlocal num_tries
        num_tries += 1
        raise error

    monkeypatch.setattr(pending, "plan", fail)
    janitor = Janitor(world.ledger, runner="s", defer=long.take, aside=aside)
    janitor.tick()
    wait_for(lambda: str(error) in aside.reasons().get("file", ""))
    wait_for(lambda: not long._under_way)
    for _ in range(5):
        janitor.tick()
    assert num_tries == 1
    assert 0 < aside.left_s("file", "long") <= aside.left_s("file")
    monkeypatch.undo()
    monkeypatch.setattr(long_work, "LONG_BYTES", 0)
    clock.sleep(1.0)
    wait_for(lambda: long.take(batch) and world.state("file") == "open")
    wait_for(lambda: aside.reasons() == {})


def test_who_stops_gives_back_what_is_planned_and_that_counts_against_no_file(world: World) -> None:
    file, other = world.store_file("file"), world.store_file("other")

    def begin_and_stop() -> None:
        world.store.num_waiting = 0
        world.store.let_go.clear()
        long = LongWork(world.ledger, "s")
        assert long.take(file)
        wait_for(lambda: world.store.num_waiting == 1)
        stopping = threading.Thread(target=long.stop)
        stopping.start()
        wait_for(lambda: long._is_stopped)
        assert long.take(other)
        world.store.let_go.set()
        stopping.join(WAIT_S)
        assert world.state("file") == world.state("other") == "planning"

    for _ in range(pending.CRASHES_MAX + 1):
        begin_and_stop()
    planned = pending.plan(world.ledger, "file", runner="next")
    assert planned is not None
    assert planned.state == "open"


@pytest.mark.parametrize("is_asked", [True, False])
def test_an_end_that_takes_longer_than_a_stop_waits_is_given_back(
    world: World, monkeypatch: pytest.MonkeyPatch, is_asked: bool
) -> None:
    if not is_asked:
        monkeypatch.setattr(long_work, "ENDS_S_MAX", 0.01)
    large = world.create("large", LARGE)
    world.work(large)
    world.store.slow.add(large.input.key)
    batches.end(world.ledger, "large", "canceled")
    get, has_begun = world.store.get, threading.Event()

    def slowly(key: str):  # type: ignore[no-untyped-def]
        if "large/parts/" in key:
            has_begun.set()
            assert world.store.let_go.wait(WAIT_S)
        return get(key)

    world.store.get = slowly  # type: ignore[method-assign]
    long = LongWork(world.ledger, "s")
    assert long.take(large)
    assert has_begun.wait(WAIT_S)
    stopping = threading.Thread(target=lambda: long.stop(leaves_ends=is_asked))
    stopping.start()
    wait_for(lambda: long._leaves_ends)
    world.store.let_go.set()
    stopping.join(WAIT_S)
    assert world.state("large") == "ending"
    ended = ending.finish(world.ledger, "large", runner="next")
    assert ended is not None, "its lease was given back"
    assert ended.state == "ended"


def test_long_is_what_is_large_or_may_unpack_to_anything(world: World) -> None:
    small, large = world.create("small"), world.create("large", LARGE)
    assert (is_long(small), is_long(large)) == (False, True)
    assert not LongWork(world.ledger, "s").take(small)
    assert not LongWork(world.ledger, "s", num_threads=0).take(large)
    assert is_long(world.store_file("file"))
    assert not is_long(world.store_file("few", 10))


def test_a_plan_with_many_rejected_lines_keeps_its_lease_on_a_slow_store() -> None:
    class OneSecond(Slow):
        def put(self, key: str, data: bytes, *, absent: bool = False, match: str | None = None) -> str:
            clock.sleep(1.0)
            found = self.get(keys.planning_key("file"))
            assert found is None or found.age_s < world.ledger.limits.lease_ttl_s
            return super().put(key, data, absent=absent, match=match)

    clock = ManualClock()
    world = World()
    world.store = OneSecond(clock)
    world.ledger = Ledger(store=world.store, clock=clock, rng=random.Random(3))
    good = json.dumps({"custom_id": "a", "params": {"messages": [{"role": "user", "content": "hello"}]}})
    rows = (good.replace('"a"', f'"r{n}"') if n % 32 else "{" for n in range(150 * 32))
    world.store.put("inbox/one/file.jsonl", "\n".join(rows).encode())
    entry = world.store.head("inbox/one/file.jsonl")
    assert entry is not None
    dropped = DroppedFile(key=entry.key, etag=entry.etag, modified_at=entry.modified_at)
    routing = RoutingTable(everything=POOL)
    draft = batches.Draft(batch_id="file", routing=routing, defaults=Defaults(), created_at=clock.now())
    pending.create(world.ledger, draft, inbox_records.source(dropped, entry.size))
    batch = pending.plan(world.ledger, "file", runner="p")
    assert batch is not None
    assert (batch.state, batch.total) == ("open", 150 * 32)
