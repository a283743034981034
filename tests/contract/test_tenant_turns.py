"""Tenants of one pool take turns, however much each of them has open."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice, pairwise

import pytest

from batchfile import Ledger, Runner, RunnerOptions
from batchfile.engine.base import Prepared
from batchfile.testing import EchoEngine, ManualClock, MemoryStore, run_alone
from batchfile.types import Defaults, RoutingTable
from tests.helpers.engine import EchoPrepared
from tests.helpers.ledger import Lease, batches, input_key, shards
from tests.helpers.plan import plan_input
from tests.helpers.runner import Claimer, SharedState

POOL = "one"
POOLS = RoutingTable(pools={POOL: ("m",)})


@pytest.fixture
def ledger() -> Ledger:
    clock = ManualClock()
    return Ledger(store=MemoryStore(clock), clock=clock, rng=random.Random(3))


def create(ledger: Ledger, tenant: str, *, num_batches: int, num_shards: int, priority: int = 5) -> None:
    """Batches `tenant-0`, `tenant-1`, ... of one line a shard."""
    for number in range(num_batches):
        batch_id = f"{tenant}-{number}"
        rows = [
            {"custom_id": f"{batch_id}/{n}", "params": {"messages": [{"role": "user", "content": "x"}]}}
            for n in range(num_shards)
        ]
        key = input_key(batch_id, "n")
        ledger.store.put(key, "\n".join(map(json.dumps, rows)).encode())
        planned = plan_input(ledger, batch_id, key, routing=POOLS, lines_per_range=1)
        draft = batches.Draft(batch_id=batch_id, routing=POOLS, defaults=Defaults(), tenant=tenant, priority=priority)
        batches.create(ledger, draft, planned)


def claimed(ledger: Ledger, runner_id: str = "r") -> Iterator[Lease]:
    claimer = Claimer(SharedState(ledger, RunnerOptions(runner_id=runner_id, pool=POOL)))
    while (held := claimer.next()) is not None or claimer.has_more:
        if held is not None:
            yield held


def test_each_tenant_gets_the_same_number_of_shards_however_many_batches_it_has(ledger: Ledger) -> None:
    create(ledger, "many", num_batches=40, num_shards=5)
    create(ledger, "one", num_batches=1, num_shards=30)
    known = islice(claimed(ledger), 10, None)  # by then all batches are known: 16 are read with each claim
    tenants = [held.batch.tenant for held in islice(known, 40)]
    assert Counter(tenants) == {"many": 20, "one": 20}
    assert all(first != second for first, second in pairwise(tenants))


def test_a_tenant_does_not_get_ahead_of_others_by_its_priority(ledger: Ledger) -> None:
    create(ledger, "loud", num_batches=2, num_shards=30, priority=0)
    create(ledger, "quiet", num_batches=1, num_shards=30, priority=9)
    assert Counter(held.batch.tenant for held in islice(claimed(ledger), 40)) == {"loud": 20, "quiet": 20}


def test_what_a_tenant_leaves_goes_to_the_others(ledger: Ledger) -> None:
    create(ledger, "many", num_batches=3, num_shards=5)
    create(ledger, "one", num_batches=1, num_shards=2)
    assert Counter(held.batch.tenant for held in claimed(ledger)) == {"many": 15, "one": 2}


def test_runners_that_start_together_do_not_all_begin_with_the_same_tenant(ledger: Ledger) -> None:
    create(ledger, "a", num_batches=1, num_shards=30)
    create(ledger, "b", num_batches=1, num_shards=30)
    assert {next(claimed(ledger, f"r{n}")).batch.tenant for n in range(20)} == {"a", "b"}


def test_lines_that_are_tried_alone_take_turns_by_tenant_the_most_suspected_first(ledger: Ledger) -> None:
    """The other tenant's come when the runner holds all of the first one's already."""
    create(ledger, "many", num_batches=4, num_shards=4)
    create(ledger, "one", num_batches=1, num_shards=3)
    for _ in range(2):
        die_with(ledger, lambda held: True)
    die_with(ledger, lambda held: held.batch.tenant == "one" and held.record.n == 1)
    held = list(claimed(ledger, "other"))
    late = [one for one in held if one.batch.tenant == "one"]
    for one in held:
        if one not in late:
            shards.release(ledger, one)
    started: list[str] = []

    class Watched(EchoEngine):
        def add(self, key: int, prepared: Prepared) -> None:
            assert isinstance(prepared, EchoPrepared)
            started.append(prepared.request.custom_id)
            while late:
                shards.release(ledger, late.pop())
            super().add(key, prepared)

    def engine() -> EchoEngine:
        return Watched(latency_s=5.0, clock=ledger.clock)

    runner = Runner(ledger, engine, RunnerOptions(runner_id="r", pool=POOL, is_janitor=False))
    run_alone(runner, until=lambda: len(started) == 19)
    places = {name: place for place, name in enumerate(started) if name.startswith("one")}
    assert min(places, key=lambda name: places[name]) == "one-0/1"
    assert max(places.values()) - min(places.values()) == 4, "one of the first tenant's between two of the other's"


def die_with(ledger: Ledger, chosen: Callable[[Lease], bool]) -> None:
    """A runner claims all that is free, says that it dispatches what is `chosen`, and is not heard of again."""
    for held in list(claimed(ledger, "dead")):
        shards.checkpoint(ledger, held, has_dispatched=chosen(held))
    ledger.clock.sleep(2 * ledger.limits.lease_ttl_s)
