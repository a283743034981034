"""One ill batch among healthy ones, in virtual time: what a store always refuses of it holds up no other."""

import json
import random
import threading
import time
from collections.abc import Callable

import pytest

from api.http.auth import Caller
from api.native import serializers
from api.service import Service
from batchfile.clock import ManualClock, SystemClock
from batchfile.engine.echo import EchoEngine
from batchfile.errors import ObjectChanged, StoreError, StoreUnavailable
from batchfile.inbox.records import inbox_path
from batchfile.inbox.scan import Inbox
from batchfile.janitor import Janitor
from batchfile.ledger import batches, idempotency, keys, retention
from batchfile.ledger.base import Ledger
from batchfile.ledger.heartbeats import read_presence, read_scale, write_presence
from batchfile.ledger.records import PresenceRecord
from batchfile.ledger.set_aside import UNANSWERED_MAX, SetAside
from batchfile.ledger.status import StatusReader
from batchfile.plan.planner import plan_input
from batchfile.runner.runner import Runner, RunnerOptions
from batchfile.settings import Settings
from batchfile.store.memory import MemoryStore
from batchfile.testing import run_alone
from batchfile.testing.faulty_store import Answer, FaultyStore, Ill
from batchfile.types import Defaults, RoutingTable

POOL = RoutingTable(everything="local")
HEALTHY = ["b0", "b1", "b3", "b4", "b5"]
ILL = "b2"
NUM_REQUESTS = 8
ENDS_WITHIN_S = 75.0
PHASE_S_MAX = 7200.0
WELL_AGAIN_WITHIN_S = 90.0  # the longest pause, and a janitor's or a finalizer's next look

REFUSALS: list[Answer] = ["400", "403", "405", "501", "EACCES"]
UNANSWERED: list[Answer] = ["500", "EIO"]
LINE = b'{"custom_id": "a", "params": {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}}'
READ_KEYS = ["batch.json", "input-*", "plan-*"]


class World:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = FaultyStore(MemoryStore(self.clock), clock=self.clock)
        self.ledger = Ledger(store=self.store, clock=self.clock, rng=random.Random(5))
        for name in sorted([*HEALTHY, ILL]):
            self.create(name)

    def create(self, batch_id: str) -> None:
        params = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
        rows = [json.dumps({"custom_id": f"{batch_id}-{n}", "params": params}) for n in range(NUM_REQUESTS)]
        key = keys.input_key(batch_id, "n")
        self.store.put(key, "\n".join(rows).encode())
        planned = plan_input(self.ledger, batch_id, key, routing=POOL, lines_per_range=4)
        draft = batches.Draft(batch_id=batch_id, routing=POOL, defaults=Defaults())
        batches.create(self.ledger, draft, planned)

    def fall_ill(self, name: str, answer: Answer, **more: bool) -> None:
        self.store.ills = [Ill(pattern=f"batches/{ILL}/{name}", answer=answer, **more)]

    def runner(self, name: str = "r1") -> Runner:
        options = RunnerOptions(runner_id=name, pool="local")
        return Runner(self.ledger, lambda: EchoEngine(num_slots=8), options)

    def num_ended(self) -> int:
        """Of the healthy ones, past the faults."""
        return sum(self.has_ended(name) for name in HEALTHY)

    def has_ended(self, batch_id: str) -> bool:
        ills, self.store.ills = self.store.ills, []
        try:
            batch = batches.read_batch(self.ledger, batch_id)
        finally:
            self.store.ills = ills
        return batch is not None and batch.state == "ended" and batch.counts.succeeded == NUM_REQUESTS

    def run(self, runner: Runner, *phases: Callable[[], bool]) -> list[float]:
        """One run. A phase is asked at each turn, and over once it says so; how many seconds each took."""
        left, took = list(phases), []
        began_at = self.clock.monotonic()

        def is_over() -> bool:
            nonlocal began_at
            now = self.clock.monotonic()
            assert now - began_at < PHASE_S_MAX, f"phase {len(took) + 1} lasts"
            if left[0]():
                left.pop(0)
                took.append(now - began_at)
                began_at = now
            return not left

        run_alone(runner, is_over)
        return took

    def read(self, key: str) -> bytes:
        found = self.store.get(key)
        assert found is not None
        return found.data

    def after(self, seconds: float) -> Callable[[], bool]:
        """A phase that lasts so long."""
        ends_at: list[float] = []

        def is_over() -> bool:
            ends_at.append(self.clock.monotonic() + seconds)
            return self.clock.monotonic() >= ends_at[0]

        return is_over

    def have_all_ended(self) -> bool:
        return self.num_ended() == len(HEALTHY)

    def get_well(self) -> bool:
        """A phase of its own: whatever the ill batch has come to, it was not ended."""
        self.store.ills = []
        batch = batches.read_batch(self.ledger, ILL)
        assert batch is not None
        assert batch.state == "open" or batch.counts.succeeded == NUM_REQUESTS
        return True


@pytest.mark.parametrize("answer", [*REFUSALS, *UNANSWERED, "nonsense"])
@pytest.mark.parametrize("name", [*READ_KEYS, "shards/*", "parts/*", "assembly.json", "results-*", "*"])
def test_healthy_batches_end_although_one_is_ill_and_it_ends_when_it_is_well(name: str, answer: Answer) -> None:
    """Within a minute and a quarter, and within a minute and a half."""
    world = World()
    world.fall_ill(name, answer)
    if answer == "nonsense" and name in {"input-*", "parts/*"}:
        world.run(world.runner(), world.have_all_ended)
        return  # these are told from what was stored by their etag or digest, which such a proxy does not change
    took = world.run(
        world.runner(), world.have_all_ended, world.after(300.0), world.get_well, lambda: world.has_ended(ILL)
    )
    assert took[0] < ENDS_WITHIN_S
    assert took[-1] < WELL_AGAIN_WITHIN_S


@pytest.mark.parametrize("more", [None, {"version": 2}, {"fingerprint": "of a newer version"}])
def test_a_shard_record_that_is_damaged_while_it_is_held_ends_no_runner(more: dict[str, object] | None) -> None:
    world = World()
    runner = world.runner()
    kept: dict[str, bytes] = {}

    def damage() -> bool:
        held = [shard.held for shard in runner._state.shards if shard.batch_id == ILL]
        if held:
            kept[held[0].key] = data = world.read(held[0].key)
            world.store.put(held[0].key, b"\0" if more is None else json.dumps({**json.loads(data), **more}).encode())
        return bool(held)

    def restore() -> bool:
        for key, data in kept.items():
            world.store.put(key, data)
        return True

    world.run(runner, damage, world.have_all_ended, restore, lambda: world.has_ended(ILL))


def test_an_input_that_is_gone_from_a_batch_that_a_newer_version_wrote_ends_no_runner() -> None:
    world = World()
    key = keys.batch_key(ILL)
    data = json.dumps({**json.loads(world.read(key)), "fingerprint": "of a newer version"}).encode()
    world.store.put(key, data)
    world.store.delete(keys.input_key(ILL, "n"))
    runner = world.runner()
    world.run(runner, world.have_all_ended, world.after(300.0))
    assert "upgrade this process" in runner.set_aside()[ILL]
    assert world.read(key) == data


@pytest.mark.parametrize("answer", [*REFUSALS, *UNANSWERED])
@pytest.mark.parametrize("pattern", ["queue/*", "bell/*", "index/*", "*"])
def test_a_refusal_of_what_belongs_to_no_batch_ends_no_runner(pattern: str, answer: Answer) -> None:
    """However long it lasts, the runner waits with its engine loaded, and goes on soon after."""
    world = World()
    world.store.ills = [Ill(pattern=pattern, answer=answer)]
    took = world.run(world.runner(), world.after(1800.0), world.get_well, world.have_all_ended)
    assert took[-1] < 60.0


@pytest.mark.parametrize("answer", [*REFUSALS, *UNANSWERED])
@pytest.mark.parametrize("pattern", ["bell/*", "index/*", "runners/*", "idempotency/*"])
def test_batches_end_without_what_is_only_a_hint(pattern: str, answer: Answer) -> None:
    world = World()
    world.store.ills = [Ill(pattern=pattern, answer=answer)]
    assert world.run(world.runner(), world.have_all_ended)[0] < ENDS_WITHIN_S


@pytest.mark.parametrize("answer", [*REFUSALS, *UNANSWERED])
def test_batches_that_are_known_end_while_the_queue_cannot_be_listed(answer: Answer) -> None:
    world = World()
    runner = world.runner()

    def queue_falls_ill() -> bool:
        if not runner.shards_held(1):
            return False
        world.store.ills = [Ill(pattern="queue/*", answer=answer)]
        return True

    assert world.run(runner, queue_falls_ill, world.have_all_ended)[-1] < ENDS_WITHIN_S


def test_a_store_that_was_away_costs_no_batch_a_long_pause() -> None:
    world = World()
    world.store.is_down = True

    def is_back() -> bool:
        world.store.is_down = False
        return True

    took = world.run(world.runner(), world.after(1800.0), is_back, world.have_all_ended)
    assert took[-1] < 10.0


def test_an_ill_batch_costs_less_and_less() -> None:
    world = World()
    asked = 0

    class Counted(Ill):
        __slots__ = ()

        def error(self, key: str) -> StoreError:
            nonlocal asked
            asked += 1
            return super().error(key)

    world.store.ills = [Counted(pattern=f"batches/{ILL}/input-*", answer="500")]
    world.run(world.runner(), world.have_all_ended, world.after(3600.0))
    assert asked <= 80, "one try a minute, once it lasts"


def test_what_is_set_aside_can_be_seen_with_its_reason_until_it_works_again() -> None:
    world = World()
    world.fall_ill("input-*", "403")
    runner = world.runner()
    seen: list[dict[str, str]] = []

    def look() -> bool:
        seen.append(runner.set_aside())
        return world.have_all_ended()

    world.run(runner, look, world.get_well, lambda: world.has_ended(ILL))
    assert seen[-1] == {ILL: f"batches/{ILL}/input-n.jsonl: 403 on purpose"}
    assert runner.set_aside() == {}


def test_the_input_that_a_store_denies_to_have_in_one_way_only_ends_no_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()

    class Denied(Ill):
        __slots__ = ()

        def error(self, key: str) -> StoreError:
            return ObjectChanged(f"{key}: 412 on purpose")

    world.store.ills = [Denied(pattern=f"batches/{ILL}/input-*", answer="400")]
    head = world.store.head
    monkeypatch.setattr(world.store, "head", lambda key: world.store._inner.head(key) if "input-" in key else head(key))
    world.run(world.runner(), world.have_all_ended, world.get_well, lambda: world.has_ended(ILL))
    batch = batches.read_batch(world.ledger, ILL)
    assert batch is not None
    assert batch.reason == "completed"


@pytest.mark.parametrize("answer", [*REFUSALS, *UNANSWERED])
@pytest.mark.parametrize("name", [*READ_KEYS, "shards/*", "*"])
def test_a_janitor_looks_after_the_others(name: str, answer: Answer) -> None:
    world = World()
    janitor = Janitor(world.ledger, runner="s")
    for batch_id in [*HEALTHY, ILL]:
        batches.end(world.ledger, batch_id, "canceled")
    world.fall_ill(name, answer)
    for _ in range(4):
        janitor.tick()
        world.clock.sleep(15.0)
    world.store.ills = []
    states = {batch_id: found.state for batch_id in HEALTHY if (found := batches.read_batch(world.ledger, batch_id))}
    assert set(states.values()) == {"ended"}
    assert len(states) == len(HEALTHY)
    world.clock.sleep(60.0)
    janitor.tick()
    ill = batches.read_batch(world.ledger, ILL)
    assert ill is not None
    assert ill.state == "ended"


def test_a_janitor_does_not_ask_for_each_batch_where_the_store_answers_nobody() -> None:
    world = World()
    janitor = Janitor(world.ledger, runner="s")
    asked = 0

    class Counted(Ill):
        __slots__ = ()

        def error(self, key: str) -> StoreError:
            nonlocal asked
            asked += 1
            return super().error(key)

    world.store.ills = [Counted(pattern="batches/*", answer="500")]
    with pytest.raises(StoreUnavailable):
        janitor.tick()
    assert asked == UNANSWERED_MAX
    world.store.ills = []


@pytest.mark.parametrize("answer", [*REFUSALS, *UNANSWERED])
def test_a_listing_shows_the_others_and_what_was_last_known_of_the_ill_one(answer: Answer) -> None:
    world = World()
    reader = StatusReader(world.ledger)
    places = [entry.key for entry in world.store.list(keys.index_prefix("default"))]
    known = {place: reader.look(place) for place in places}
    world.fall_ill("*", answer)
    for again, is_remembered in ((reader, True), (StatusReader(world.ledger), False)):
        seen = {keys.index_batch_id(place): again.look(place) for place in places}
        assert {name for name, found in seen.items() if found is not None and found.problem is None} == set(HEALTHY)
        ill = seen[ILL]
        assert ill is not None
        assert ill.is_known == is_remembered
        assert ill.batch.state == ("open" if is_remembered else "planning"), "nothing final"
    assert all(found is not None and found.problem is None for found in known.values())


def test_a_pool_is_scaled_by_the_batches_that_can_be_read() -> None:
    world = World()
    world.fall_ill("batch.json", "500")
    assert read_scale(StatusReader(world.ledger), "local").pending_requests == NUM_REQUESTS * len(HEALTHY)
    world.store.ills = [Ill(pattern="batches/*", answer="500")]
    with pytest.raises(StoreUnavailable):
        read_scale(StatusReader(world.ledger), "local")


def test_a_run_of_one_batch_ends_and_says_why_where_the_store_keeps_refusing() -> None:
    """A person waits for it and can do something: so not at the first refusal, and not after hours."""
    world = World()
    world.fall_ill("shards/*", "EACCES")
    options = RunnerOptions(runner_id="r", pool="local", only=ILL, is_janitor=False)
    began_at = world.clock.monotonic()
    with pytest.raises(StoreError, match="EACCES on purpose"):
        run_alone(Runner(world.ledger, lambda: EchoEngine(num_slots=8), options))
    assert 30.0 < world.clock.monotonic() - began_at < 120.0


def test_a_run_of_one_batch_outlasts_a_few_refusals() -> None:
    world = World()
    world.fall_ill("*", "403")
    options = RunnerOptions(runner_id="r", pool="local", only=ILL, is_janitor=False)
    runner = Runner(world.ledger, lambda: EchoEngine(num_slots=8), options)
    world.run(runner, world.after(5.0), world.get_well, lambda: world.has_ended(ILL))


@pytest.mark.parametrize("answer", ["403", "500", "nonsense"])
def test_the_threads_of_a_runner_outlive_what_a_store_answers(answer: Answer) -> None:
    clock = SystemClock()
    store = FaultyStore(MemoryStore(clock), clock=clock)
    world = World()
    for entry in world.store.list(""):
        found = world.store.get(entry.key)
        assert found is not None
        store.put(entry.key, found.data)
    world.store, world.ledger = store, Ledger(store=store, clock=clock)
    runner = Runner(world.ledger, lambda: EchoEngine(num_slots=8), RunnerOptions(runner_id="r", pool="local"))
    store.ills = [Ill(pattern="*", answer=answer)]
    thread = threading.Thread(target=runner.run, daemon=True)
    thread.start()
    time.sleep(0.5)
    assert thread.is_alive()
    store.ills = [Ill(pattern=f"batches/{ILL}/*", answer=answer)]
    deadline = time.monotonic() + 60.0
    while not world.have_all_ended():
        assert thread.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    runner.stop()
    thread.join(60.0)
    assert not thread.is_alive()


@pytest.mark.parametrize("answer", [*REFUSALS, *UNANSWERED])
def test_the_service_lists_the_batches_that_can_be_read(answer: Answer) -> None:
    world = World()
    service = Service(world.ledger, Settings(), "api")
    caller = Caller(tenant="default", key="k")
    world.fall_ill("batch.json", answer)
    page = service.page(caller, limit=10)
    assert {status.batch.batch_id: serializers.batch(status).state for status in page.data} == {
        **dict.fromkeys(HEALTHY, "open"),
        ILL: "unreadable",
    }
    assert ILL not in "".join(serializers.batch(status).detail or "" for status in page.data), "no key for a tenant"
    world.store.ills = [Ill(pattern="batches/*", answer=answer)]
    with pytest.raises(StoreError):
        service.page(caller, limit=10)


@pytest.mark.parametrize("answer", [*REFUSALS, *UNANSWERED])
@pytest.mark.parametrize("pattern", ["inbox/local/b1.jsonl", "inbox/", "inbox-claims/*"])
def test_an_ill_file_in_the_inbox_holds_up_no_other_and_is_not_rejected(pattern: str, answer: Answer) -> None:
    clock = ManualClock()
    store = FaultyStore(MemoryStore(clock), clock=clock)
    ledger = Ledger(store=store, clock=clock, rng=random.Random(5))
    janitor = Janitor(ledger, runner="s", inbox=Inbox(ledger, RoutingTable(pools={"local": ("m",)})))
    for name in ("b0", "b1", "b2"):
        store.put(f"inbox/local/{name}.jsonl", LINE)
    clock.sleep(60.0)
    key = keys.input_key("c", "n")
    store.put(key, LINE)
    planned = plan_input(ledger, "c", key, routing=POOL)
    batches.create(ledger, batches.Draft(batch_id="c", routing=POOL, defaults=Defaults()), planned)
    batches.end(ledger, "c", "canceled")
    store.ills = [Ill(pattern=pattern, answer=answer)]
    for _ in range(4):
        janitor.tick()
        clock.sleep(15.0)
    store.ills = []
    canceled = batches.read_batch(ledger, "c")
    assert canceled is not None
    assert canceled.state == "ended", "what was not dropped does not wait for the inbox"
    clock.sleep(60.0)
    for _ in range(2):
        janitor.tick()
        clock.sleep(15.0)
    made = [batches.read_batch(ledger, keys.index_batch_id(entry.key)) for entry in store.list("index/")]
    states = {inbox_path(batch): batch.state for batch in made if batch is not None and batch.batch_id != "c"}
    assert len(made) == 4
    assert states == {f"inbox/local/{name}.jsonl": "open" for name in ("b0", "b1", "b2")}


def test_a_thousand_ill_batches_make_no_look_at_one_of_them_slow() -> None:
    """Claims ask for each open batch, many times a second, under the engine's interpreter lock."""

    class Counted(dict[str, str]):
        num = 0

        def items(self):  # type: ignore[no-untyped-def]
            Counted.num += 1
            return super().items()

    world = World()
    aside = SetAside(world.ledger)
    for n in range(1000):
        aside.put(f"b{n}", "claim", StoreError("403"))
    aside._setbacks = Counted(aside._setbacks)  # type: ignore[arg-type,assignment]
    assert all(0 < aside.left_s(f"b{n}") <= 1.0 for n in range(1000))
    assert not aside.left_s("well")
    assert Counted.num == 0, "none goes through all that are set aside"
    aside.worked("b1", "claim")
    assert (aside.left_s("b1"), "b1" in aside.reasons(), len(aside.reasons())) == (0.0, False, 999)


@pytest.mark.parametrize("answer", [*REFUSALS, *UNANSWERED, "rubbish"])
def test_a_sweep_removes_what_is_due_although_another_object_is_ill(answer: Answer) -> None:
    world = World()
    for name in "abcde":
        world.store.put(f"gone/{name}/x", b"")
        retention.remove_after(world.ledger, f"gone/{name}", 60.0 + ord(name))
        idempotency.get_or_create(
            world.ledger, kind="key", tenant="t", value=name, digest=name, batch_id=f"never-{name}"
        )
    markers = [entry.key for entry in world.store.list(keys.EXPIRING_PREFIX)]
    entries = [entry.key for entry in world.store.list(keys.IDEMPOTENCY_PREFIX)]
    if answer == "rubbish":  # what it holds, not how it is answered
        world.store.put(markers[0], b"soon")
    else:
        world.store.ills = [Ill(pattern=markers[0], answer=answer), Ill(pattern=entries[0], answer=answer)]
    world.clock.sleep(10 * 24 * 3600.0)
    Janitor(world.ledger, runner="s").tick()
    world.store.ills = []
    assert [entry.key for entry in world.store.list("gone/")] == ["gone/a/x"]
    assert [entry.key for entry in world.store.list(keys.IDEMPOTENCY_PREFIX)] == entries[: answer != "rubbish"]


def test_a_sweep_stops_where_nothing_is_answered() -> None:
    world = World()
    for name in "abcdefgh":
        retention.remove_after(world.ledger, f"gone/{name}", 60.0)
    world.clock.sleep(3600.0)
    world.store.ills = [Ill(pattern="expiring/*/*", answer="500"), Ill(pattern="expiring/?*", answer="500")]
    with pytest.raises(StoreUnavailable):
        retention.sweep(world.ledger)


@pytest.mark.parametrize("answer", [*REFUSALS, *UNANSWERED])
def test_a_runner_whose_document_is_ill_hides_no_other(answer: Answer) -> None:
    world = World()
    for name in ("r1", "r2", "r3"):
        write_presence(world.ledger, presence(name))
    world.store.ills = [Ill(pattern="runners/*r2*", answer=answer)]
    assert [record.runner_id for record in read_presence(world.ledger)] == ["r1", "r3"]
    world.store.ills = [Ill(pattern="runners/*r*", answer=answer)]
    with pytest.raises(StoreError):
        read_presence(world.ledger)


def presence(name: str) -> PresenceRecord:
    return PresenceRecord(
        pool="local",
        runner_id=name,
        model="m",
        engine="echo",
        engine_version="1",
        state="idle",
        started_at=0.0,
        num_slots=1,
    )
