"""What the simulator found, each as small as it gets."""

import random
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

import pytest

from batchfile import Ledger
from batchfile.errors import BatchDamaged, RecordDamaged, StoreUnavailable
from batchfile.testing import FaultyStore, ManualClock, MemoryStore
from batchfile.types import Defaults, RoutingTable
from tests.helpers.inbox import CLAIM_KEPT_S, CLAIMS_PREFIX, Inbox, Janitor
from tests.helpers.ledger import (
    KeyedBatch,
    Lease,
    Planned,
    SetAside,
    StatusReader,
    batches,
    encode,
    ending,
    idempotency,
    keys,
    lease,
    retention,
    shards,
)
from tests.helpers.lines import FinishedLine
from tests.helpers.plan import plan_input
from tests.helpers.service import Caller, Refusal, Service
from tests.helpers.settings import Settings
from tests.helpers.store import Entry, Object

LOCAL = RoutingTable(everything="local")
LOCAL_POOL = RoutingTable(pools={"local": ("m",)})
ROWS = b"".join(
    b'{"custom_id": "r%d", "params": {"messages": [{"role": "user", "content": "x"}]}}\n' % number
    for number in range(2)
)


class HookedStore(MemoryStore):
    """Calls `after_read` once, when an answer to a read of a key is on its way."""

    hooked_key: str | None = None
    after_read: Callable[[], object]
    left_out: Collection[str] = ()  # prefixes whose listings have nothing but gaps

    def get(self, key: str) -> Object | None:
        found = super().get(key)
        self._happen(key)
        return found

    def list(self, prefix: str, *, after: str = "") -> Iterator[Entry]:
        found = [] if prefix in self.left_out else [*super().list(prefix, after=after)]
        self._happen(prefix)
        return iter(found)

    def head(self, key: str) -> Entry | None:
        found = super().head(key)
        self._happen(key)
        return found

    def _happen(self, key: str) -> None:
        if key == self.hooked_key:
            self.hooked_key = None
            self.after_read()


@pytest.fixture
def store() -> HookedStore:
    return HookedStore(ManualClock())


@pytest.fixture
def ledger(store: HookedStore) -> Ledger:
    clock = store._clock
    return Ledger(store=store, clock=clock, rng=random.Random(1))


def create(ledger: Ledger, batch_id: str, created_at: float | None = None) -> Planned:
    key = keys.input_key(batch_id, "n")
    ledger.store.put(key, ROWS)
    planned = plan_input(ledger, batch_id, key, routing=LOCAL)
    draft = batches.Draft(batch_id=batch_id, routing=LOCAL, defaults=Defaults(), created_at=created_at)
    batches.create(ledger, draft, planned)
    return planned


def claim(ledger: Ledger) -> Lease:
    planned = create(ledger, "b")
    batch = batches.read_batch(ledger, "b")
    assert batch is not None
    held = shards.claim(ledger, batch, planned.plan, "local", 0, runner="r")
    assert isinstance(held, Lease)
    return held


def get_or_create(ledger: Ledger, batch_id: str) -> KeyedBatch:
    return idempotency.get_or_create(ledger, kind="key", tenant="t", value="K", digest="d", batch_id=batch_id)


def test_a_slow_reader_counts_an_ended_batch_by_its_record_alone(store: HookedStore, ledger: Ledger) -> None:
    shards.checkpoint(ledger, claim(ledger), [FinishedLine(0, "succeeded", b"{}")], has_dispatched=True)
    reader = StatusReader(ledger)
    reader.read("b")

    def end_it() -> None:
        batches.end(ledger, "b", "canceled")
        ending.finish(ledger, "b", runner="r")
        reader.read("b")

    store.hooked_key, store.after_read = keys.batch_key("b"), end_it
    found = reader.read("b")
    assert found is not None
    assert (found.status.state, found.status.counts.finished) == ("ended", 2)


def test_what_is_not_planned_yet_counts_nothing(store: HookedStore, ledger: Ledger) -> None:
    """A read that was under way while it was planned and begun tells how it was before."""
    held = claim(ledger)
    record = held.batch
    unplanned = replace(record, state="planning", plan_key="", total=0)
    store.put(keys.batch_key("b"), encode(unplanned))

    def plan_and_finish() -> None:
        store.put(keys.batch_key("b"), encode(record))
        lines = [FinishedLine(number, "succeeded", b"{}") for number in range(2)]
        shards.checkpoint(ledger, held, lines, has_dispatched=True)

    store.hooked_key, store.after_read = keys.batch_key("b"), plan_and_finish
    found = StatusReader(ledger).read("b")
    assert found is not None
    assert (found.status.total, found.status.pending, found.status.counts.finished) == (0, 0, 0)


def test_a_read_from_before_the_create_makes_nobody_forget_what_was_seen_since(
    store: HookedStore, ledger: Ledger
) -> None:
    reader = StatusReader(ledger)

    def create_and_look() -> None:
        shards.checkpoint(ledger, claim(ledger), [FinishedLine(0, "succeeded", b"{}")], has_dispatched=True)
        reader.read("b")

    store.hooked_key, store.after_read = keys.batch_key("b"), create_and_look
    assert reader.read("b") is None
    store.delete(keys.shard_key("b", "local", 0))  # stands for a listing that leaves it out
    found = reader.read("b")
    assert found is not None
    assert found.status.counts.finished == 1


def test_a_create_that_was_only_slow_makes_no_second_batch_of_its_key(ledger: Ledger) -> None:
    slow = get_or_create(ledger, "one")
    ledger.clock.sleep(ledger.limits.abandoned_s)
    assert get_or_create(ledger, "two").batch_id == "two"
    with pytest.raises(BatchDamaged, match="submit this batch again"):
        create(ledger, slow.batch_id, slow.created_at)
    create(ledger, "two")
    assert get_or_create(ledger, "three").batch_id == "two"


def test_a_shard_that_is_done_is_not_written_again(store: HookedStore, ledger: Ledger) -> None:
    held = claim(ledger)
    lines = [FinishedLine(number, "succeeded", b"{}") for number in range(2)]

    def lose_the_answer(number: int, verb: str, key: str, phase: str) -> None:
        if key == held.key and phase == "after":
            faulty.is_down = True
            raise StoreUnavailable("the answer was lost")

    faulty = FaultyStore(store, on_call=lose_the_answer)
    cut_off = Ledger(store=faulty, clock=ledger.clock, rng=ledger.rng)
    with pytest.raises(StoreUnavailable):
        shards.checkpoint(cut_off, held, lines, has_dispatched=True)
    done = store.get(held.key)
    shards.checkpoint(ledger, held, lines, has_dispatched=True)
    shards.checkpoint(ledger, held, has_dispatched=True)
    assert held.record.state == "done"
    assert store.get(held.key) == done


def test_the_last_trace_of_a_batch_is_removed_for_good(store: HookedStore, ledger: Ledger) -> None:
    create(ledger, "b")
    batches.end(ledger, "b", "canceled")
    ending.finish(ledger, "b", runner="r")
    retention.delete(ledger, "b")
    ledger.clock.sleep(ledger.limits.tombstone_s)
    first, second = (Janitor(ledger, runner=name) for name in ("one", "two"))
    store.hooked_key, store.after_read = keys.INDEX_PREFIX, first.tick
    second.tick()
    assert [entry.key for prefix in ("batches/", "index/") for entry in store.list(prefix)] == []


def test_a_wrong_clock_removes_no_tombstone(store: HookedStore, ledger: Ledger) -> None:
    """A create that was slow would come to life behind it."""
    create(ledger, "b")
    batches.end(ledger, "b", "canceled")
    ending.finish(ledger, "b", runner="r")
    retention.delete(ledger, "b")
    ahead = ManualClock(ledger.clock.now() + 2 * ledger.limits.tombstone_s)
    Janitor(Ledger(store=store, clock=ahead, rng=ledger.rng), runner="ahead").tick()
    assert store.get(keys.batch_key("b")) is not None
    assert [entry.key for entry in store.list(keys.batch_prefix("b"))] != [keys.batch_key("b")]


def test_a_line_that_waits_for_its_turn_alone_is_not_blamed_for_a_death(store: HookedStore, ledger: Ledger) -> None:
    """The engine is emptied before a trial begins: a death until then is not that of the line."""
    held = claim(ledger)
    batch, plan = held.batch, batches.read_plan(ledger, held.batch)
    shards.checkpoint(ledger, held, has_dispatched=True)
    for _ in range(4):
        ledger.clock.sleep(ledger.limits.lease_ttl_s)
        again = shards.claim(ledger, batch, plan, "local", 0, runner="r")
        assert isinstance(again, Lease)
        if lease.is_bisecting(again.record):
            shards.checkpoint(ledger, again, has_dispatched=False, bisect_set=(0,))
            assert lease.must_announce(again.record)
        else:
            shards.checkpoint(ledger, again, has_dispatched=True)
    assert (again.record.bisect_set, again.record.crashes_alone) == ((0,), 0)


def test_a_wrong_clock_forgets_no_create_that_is_under_way(store: HookedStore, ledger: Ledger) -> None:
    """Its key would stand for another batch as soon as it is done."""
    slow = get_or_create(ledger, "one")
    ahead = ManualClock(ledger.clock.now() + 3 * ledger.limits.tombstone_s)
    idempotency.sweep_idempotency(Ledger(store=store, clock=ahead, rng=ledger.rng))
    create(ledger, slow.batch_id, slow.created_at)
    assert get_or_create(ledger, "two").batch_id == "one"


def drop(ledger: Ledger, text: bytes) -> None:
    ledger.store.put("inbox/local/a.jsonl", ROWS + text)
    ledger.clock.sleep(10.0)


def look(ledger: Ledger) -> None:
    Inbox(ledger, LOCAL_POOL).look(SetAside(ledger))


def inputs(ledger: Ledger) -> list[str]:
    """The versions of files that became batches."""
    found = (batches.read_batch(ledger, keys.index_batch_id(entry.key)) for entry in ledger.store.list("index/"))
    return sorted(batch.input.etag for batch in found if batch is not None)


def test_a_wrong_clock_removes_no_claim(store: HookedStore, ledger: Ledger) -> None:
    """A process that slept since it saw the file would make a second batch of it; one whose disk comes back, too."""
    drop(ledger, b"")
    look(ledger)
    store.delete("inbox/local/a.jsonl")
    ahead = ManualClock(ledger.clock.now() + 2 * CLAIM_KEPT_S)
    Inbox(Ledger(store=store, clock=ahead, rng=ledger.rng), LOCAL_POOL).sweep()
    assert len([*store.list(CLAIMS_PREFIX)]) == 1


def test_who_slept_for_longer_than_a_claim_is_kept_makes_no_second_batch(store: HookedStore, ledger: Ledger) -> None:
    drop(ledger, b"")

    def others_go_on() -> None:
        look(ledger)
        drop(ledger, b"\n")
        look(ledger)
        ledger.clock.sleep(CLAIM_KEPT_S)
        Inbox(ledger, LOCAL_POOL).sweep()
        assert len([*store.list(CLAIMS_PREFIX)]) == 1

    store.hooked_key, store.after_read = "inbox/local/a.jsonl", others_go_on
    slept = Ledger(store=store, clock=ledger.clock, rng=random.Random(2))
    look(slept)
    found = inputs(ledger)
    assert len(found) == len(set(found)) == 2


@pytest.mark.parametrize("gaps", [{"index/default/"}, {"index/default/", "index/"}])
def test_a_batch_that_cannot_be_read_and_that_a_listing_leaves_out_is_not_called_unknown(
    store: HookedStore, ledger: Ledger, gaps: set[str]
) -> None:
    create(ledger, "b")
    store.put(keys.batch_key("b"), b"nonsense")
    store.left_out = gaps
    service = Service(ledger, Settings.model_construct(api=Settings.model_fields["api"].default), "api")
    caller = Caller(tenant="default", key="k")
    for ask in (service.record, service.read):
        with pytest.raises((RecordDamaged, Refusal)) as told:
            ask(caller, "b")
        if isinstance(told.value, Refusal):
            assert (told.value.status, told.value.headers) == (503, {"Retry-After": "5"})
    if "index/" in gaps:
        with pytest.raises(Refusal, match="try again later"):
            service.delete(caller, "b")
        assert store._objects[keys.batch_key("b")].data == b"nonsense"
    else:
        service.delete(caller, "b")
    service.close()
