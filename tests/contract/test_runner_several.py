"""A runner that works on several batches of a store, and on no others, with one engine that is never drained."""

import json
import random
from dataclasses import replace

import pytest

from batchfile import Ledger, Runner, RunnerOptions
from batchfile.engine.base import Finished, Prepared
from batchfile.errors import BatchDamaged
from batchfile.testing import EchoEngine, ManualClock, MemoryStore, run_alone
from batchfile.types import Defaults, RoutingTable
from tests.helpers.engine import EchoPrepared
from tests.helpers.ledger import BatchRecord, batches, ending, keys
from tests.helpers.plan import plan_input
from tests.helpers.runner import NEW_AT_ONCE, Claimer, Loop, Prefetcher, SharedState

LOCAL = RoutingTable(everything="local")


@pytest.fixture
def ledger() -> Ledger:
    clock = ManualClock()
    return Ledger(store=MemoryStore(clock), clock=clock, rng=random.Random(5))


def create(ledger: Ledger, batch_id: str, num: int) -> None:
    rows = [
        {"custom_id": f"{batch_id}{n}", "params": {"messages": [{"role": "user", "content": f"say {batch_id} {n}"}]}}
        for n in range(num)
    ]
    ledger.store.put(keys.input_key(batch_id, "n"), "\n".join(map(json.dumps, rows)).encode())
    planned = plan_input(ledger, batch_id, keys.input_key(batch_id, "n"), routing=LOCAL)
    batches.create(ledger, batches.Draft(batch_id=batch_id, routing=LOCAL, defaults=Defaults()), planned)


def options(*batch_ids: str) -> RunnerOptions:
    return RunnerOptions(runner_id="r", pool="local", only=batch_ids, is_janitor=False)


def state_of(ledger: Ledger, batch_id: str) -> str:
    batch = batches.read_batch(ledger, batch_id)
    assert batch is not None
    return batch.state


def test_the_batches_run_with_one_engine_and_no_other_batch_of_the_store_runs(ledger: Ledger) -> None:
    for batch_id in ("first", "other", "second"):
        create(ledger, batch_id, 70)
    engines: list[EchoEngine] = []

    def build() -> EchoEngine:
        engines.append(EchoEngine(num_slots=4))
        return engines[-1]

    told: list[BatchRecord] = []
    last = run_alone(Runner(ledger, build, options("first", "second"), on_ended=told.append))
    assert len(engines) == 1
    assert [(batch.batch_id, batch.state, batch.counts.succeeded) for batch in told] == [
        ("first", "ended", 70),
        ("second", "ended", 70),
    ]
    assert last == told[1]
    assert state_of(ledger, "other") == "open"
    assert not list(ledger.store.list(keys.shards_prefix("other")))


def test_requests_of_the_next_batch_fill_the_engine_while_the_last_of_one_still_run(ledger: Ledger) -> None:
    """The last request of the first batch does not finish before one of the second was added."""
    create(ledger, "a", 3)
    create(ledger, "b", 3)
    events: list[str] = []

    class Waiting(EchoEngine):
        def __init__(self) -> None:
            super().__init__(num_slots=8)
            self.names: dict[int, str] = {}
            self.withheld: list[Finished] = []
            self.num_idle = 0

        def add(self, key: int, prepared: Prepared) -> None:
            assert isinstance(prepared, EchoPrepared)
            self.names[key] = prepared.request.custom_id
            events.append(f"add {self.names[key]}")
            super().add(key, prepared)

        def step(self) -> list[Finished]:
            done = self.withheld + super().step()
            is_last_of_a = [self.names[one.key] == "a2" for one in done]
            self.num_idle += 1
            is_due = "add b0" in events or self.num_idle > 1000
            self.withheld = [] if is_due else [one for one, is_last in zip(done, is_last_of_a, strict=True) if is_last]
            given = [one for one in done if one not in self.withheld]
            events.extend(f"end {self.names[one.key]}" for one in given)
            return given

    run_alone(Runner(ledger, Waiting, options("a", "b"), on_ended=lambda batch: events.append(batch.batch_id)))
    assert events.index("add b0") < events.index("end a2") < events.index("a") < events.index("b")


def test_the_batches_are_worked_on_in_the_order_given(ledger: Ledger) -> None:
    names = ["d", "b", "e", "a", "c"]
    for batch_id in sorted(names):
        create(ledger, batch_id, 1)
    claims = Claimer(SharedState(ledger, options(*names)))
    held = [claims.next() for _ in names]
    assert [lease.batch.batch_id for lease in held if lease is not None] == names
    assert claims.next() is None


def test_no_more_batches_are_read_than_are_due(ledger: Ledger) -> None:
    names = [f"b{n:03d}" for n in range(4 * NEW_AT_ONCE)]
    for batch_id in names:
        create(ledger, batch_id, 1)
    claims = Claimer(SharedState(ledger, options(*names)))
    assert claims.next() is not None
    assert sum(map(claims.knows, names)) == NEW_AT_ONCE
    assert claims.has_more


def test_a_batch_that_is_ended_elsewhere_holds_up_no_other(ledger: Ledger) -> None:
    for batch_id in ("canceled", "complete"):
        create(ledger, batch_id, 40)
    batches.end(ledger, "canceled", "canceled")
    ending.finish(ledger, "canceled", runner="other")
    told: list[tuple[str, str | None]] = []
    run_alone(
        Runner(
            ledger,
            EchoEngine,
            options("canceled", "complete"),
            on_ended=lambda batch: told.append((batch.batch_id, batch.reason)),
        )
    )
    assert sorted(told) == [("canceled", "canceled"), ("complete", "completed")]


def test_a_batch_that_is_gone_ends_the_run_with_its_name(ledger: Ledger) -> None:
    create(ledger, "there", 3)
    with pytest.raises(BatchDamaged, match="the batch gone was deleted while it ran"):
        run_alone(Runner(ledger, EchoEngine, options("there", "gone")))


@pytest.mark.parametrize(("num_runners", "num_claimed_max"), [(1, 10), (10, 5)])
def test_a_runner_leaves_others_their_share_of_a_batch(ledger: Ledger, num_runners: int, num_claimed_max: int) -> None:
    """It has 80 requests in flight that do not finish, and may hold 256 more. The others are not ready yet."""
    create(ledger, "a", 320)
    given = replace(options("a"), num_runners=num_runners)
    state = SharedState(ledger, given)

    class Slow(EchoEngine):
        def step(self) -> list[Finished]:
            return []

    engine = Slow(num_slots=64)
    state.engine, state.info, state.has_engine = engine, engine.info, True
    claimer, loop = Claimer(state), Loop(state)
    prefetcher = Prefetcher(state, claimer)
    for _ in range(100):
        prefetcher.tick()
        loop.step(engine)
    assert len(state.in_flight) == 80
    num_claimed = len(list(ledger.store.list(keys.shards_prefix("a"))))
    assert num_claimed <= num_claimed_max
    assert num_claimed_max < 10 or num_claimed == 10
