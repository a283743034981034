"""What is ill holds up no listing, no sweep, no scaling, no file of the inbox and no runner's thread."""

import random
import threading
import time

import pytest

from batchfile import Ledger, Runner, RunnerOptions
from batchfile.errors import StoreError, StoreUnavailable
from batchfile.testing import EchoEngine, FaultyStore, Ill, ManualClock, MemoryStore, run_alone
from batchfile.types import Defaults, RoutingTable
from tests.contract.isolation_kit import HEALTHY, ILL, NUM_REQUESTS, POOL, REFUSALS, UNANSWERED, World
from tests.helpers.faults import IllAnswer
from tests.helpers.inbox import Inbox, Janitor, inbox_path
from tests.helpers.ledger import (
    HeartbeatRecord,
    SetAside,
    StatusReader,
    batches,
    idempotency,
    keys,
    read_heartbeats,
    read_scale,
    retention,
    write_heartbeat,
)
from tests.helpers.plan import plan_input
from tests.helpers.service import Caller, Service, serializers
from tests.helpers.settings import Settings
from tests.helpers.store import SystemClock

LINE = b'{"custom_id": "a", "params": {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}}'


@pytest.mark.parametrize("answer", [*REFUSALS, *UNANSWERED])
def test_a_listing_shows_the_others_and_what_was_last_known_of_the_ill_one(answer: IllAnswer) -> None:
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
def test_the_threads_of_a_runner_outlive_what_a_store_answers(answer: IllAnswer) -> None:
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
def test_the_service_lists_the_batches_that_can_be_read(answer: IllAnswer) -> None:
    world = World()
    service = Service(world.ledger, Settings(), "api")
    caller = Caller(tenant="default", key="k")
    world.fall_ill("batch.json", answer)
    page = service.page(caller, limit=10)
    assert {found.batch.batch_id: serializers.batch_status(found).state for found in page.data} == {
        **dict.fromkeys(HEALTHY, "open"),
        ILL: "unreadable",
    }
    assert ILL not in "".join(serializers.batch_status(found).detail or "" for found in page.data), (
        "no key for a tenant"
    )
    world.store.ills = [Ill(pattern="batches/*", answer=answer)]
    with pytest.raises(StoreError):
        service.page(caller, limit=10)


@pytest.mark.parametrize("answer", [*REFUSALS, *UNANSWERED])
@pytest.mark.parametrize("pattern", ["inbox/local/b1.jsonl", "inbox/", "inbox-claims/*"])
def test_an_ill_file_in_the_inbox_holds_up_no_other_and_is_not_rejected(pattern: str, answer: IllAnswer) -> None:
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
    aside._failures = Counted(aside._failures)  # type: ignore[arg-type,assignment]
    assert all(0 < aside.left_s(f"b{n}") <= 1.0 for n in range(1000))
    assert not aside.left_s("well")
    assert Counted.num == 0, "none goes through all that are set aside"
    aside.worked("b1", "claim")
    assert (aside.left_s("b1"), "b1" in aside.reasons(), len(aside.reasons())) == (0.0, False, 999)


@pytest.mark.parametrize("answer", [*REFUSALS, *UNANSWERED, "rubbish"])
def test_a_sweep_removes_what_is_due_although_another_object_is_ill(answer: IllAnswer) -> None:
    world = World()
    for name in "abcde":
        world.store.put(f"gone/{name}/x", b"")
        retention.remove_after(world.ledger, f"gone/{name}", 60.0 + ord(name))
        idempotency.get_or_create(
            world.ledger, kind="key", tenant="t", value=name, digest=name, batch_id=f"never-{name}"
        )
    expiring = [entry.key for entry in world.store.list(keys.EXPIRING_PREFIX)]
    entries = [entry.key for entry in world.store.list(keys.IDEMPOTENCY_PREFIX)]
    if answer == "rubbish":  # what it holds, not how it is answered
        world.store.put(expiring[0], b"soon")
    else:
        world.store.ills = [Ill(pattern=expiring[0], answer=answer), Ill(pattern=entries[0], answer=answer)]
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
def test_a_runner_whose_document_is_ill_hides_no_other(answer: IllAnswer) -> None:
    world = World()
    for name in ("r1", "r2", "r3"):
        write_heartbeat(world.ledger, presence(name))
    world.store.ills = [Ill(pattern="runners/*r2*", answer=answer)]
    assert [record.runner_id for record in read_heartbeats(world.ledger)] == ["r1", "r3"]
    world.store.ills = [Ill(pattern="runners/*r*", answer=answer)]
    with pytest.raises(StoreError):
        read_heartbeats(world.ledger)


def presence(name: str) -> HeartbeatRecord:
    return HeartbeatRecord(
        pool="local",
        runner_id=name,
        model="m",
        engine="echo",
        engine_version="1",
        state="idle",
        started_at=0.0,
        num_slots=1,
    )
