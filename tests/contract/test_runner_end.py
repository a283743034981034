"""How a runner ends while its store is away: soon, and what the store never heard of expires."""

import json
import random

import pytest

from batchfile import Ledger, Runner, RunnerOptions
from batchfile.errors import StoreUnavailable
from batchfile.testing import ManualClock, MemoryStore
from batchfile.types import Defaults, RoutingTable
from tests.helpers.engine import engine_factory
from tests.helpers.fleet import Heartbeat, Identity
from tests.helpers.ledger import ShardRecord, batches, keys, load, read_heartbeats, shards
from tests.helpers.plan import plan_input
from tests.helpers.runner import AWAY_S_MAX, ActiveShard, Checkpointer, Claimer, SharedState
from tests.helpers.store import Object

CALL_S = 3.0  # what a call takes to fail
NUM_SHARDS = 20


class Leaving(MemoryStore):
    """Away until a time of its clock."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.time = clock
        self.away_until = float("-inf")
        self.num_failures = 0

    def get(self, key: str) -> Object | None:
        self._answer()
        return super().get(key)

    def put(self, key: str, data: bytes, *, absent: bool = False, match: str | None = None) -> str:
        self._answer()
        return super().put(key, data, absent=absent, match=match)

    def delete(self, key: str) -> None:
        self._answer()
        super().delete(key)

    def _answer(self) -> None:
        if self.time.now() < self.away_until:
            self.num_failures += 1
            self.time.sleep(CALL_S)
            raise StoreUnavailable("away")


@pytest.fixture
def store() -> Leaving:
    return Leaving(ManualClock())


@pytest.fixture
def ledger(store: Leaving) -> Ledger:
    return Ledger(store=store, clock=store.time, rng=random.Random(3))


@pytest.fixture
def checkpointer(ledger: Ledger) -> Checkpointer:
    """Of a runner that holds every shard of a batch."""
    routing = RoutingTable(everything="local")
    params = {"messages": [{"role": "user", "content": "Hi."}], "max_tokens": 9}
    rows = [json.dumps({"custom_id": f"r{n}", "params": params}) for n in range(32 * NUM_SHARDS)]
    ledger.store.put(keys.input_key("b", "n"), "\n".join(rows).encode())
    planned = plan_input(ledger, "b", keys.input_key("b", "n"), routing=routing)
    batch = batches.create(ledger, batches.Draft(batch_id="b", routing=routing, defaults=Defaults()), planned)
    state = SharedState(ledger, RunnerOptions(runner_id="r", pool="local"))
    for n in range(NUM_SHARDS):
        held = shards.claim(ledger, batch, planned.plan, "local", n, runner="r")
        assert isinstance(held, shards.Lease)
        state.shards.append(ActiveShard(held=held, left=32))
    return Checkpointer(state, Claimer(state))


def states(ledger: Ledger) -> set[str]:
    found = [load(ledger, entry.key, ShardRecord) for entry in ledger.store.list(keys.shards_prefix("b"))]
    return {shard.record.state for shard in found if shard is not None}


def test_an_end_waits_for_a_store_that_stays_away_as_long_as_for_a_few_calls(
    checkpointer: Checkpointer, ledger: Ledger, store: Leaving
) -> None:
    store.away_until, began_at = float("inf"), store.time.now()
    checkpointer.release_all()
    assert AWAY_S_MAX <= store.time.now() - began_at <= AWAY_S_MAX + 4 * CALL_S
    assert checkpointer.is_store_away
    assert not checkpointer._state.shards
    store.away_until = float("-inf")
    assert states(ledger) == {"leased"}


def test_a_store_that_is_away_for_a_moment_hears_of_every_shard(
    checkpointer: Checkpointer, ledger: Ledger, store: Leaving
) -> None:
    store.away_until = store.time.now() + CALL_S / 2
    checkpointer.release_all()
    assert store.num_failures == 1
    assert not checkpointer.is_store_away
    assert states(ledger) == {"open"}


def test_a_keeper_that_ends_begins_no_checkpoint(checkpointer: Checkpointer, ledger: Ledger, store: Leaving) -> None:
    store.time.sleep(ledger.limits.lease_ttl_s / 2)
    store.away_until = float("inf")
    checkpointer._state.is_over.set()
    checkpointer.tick()
    assert store.num_failures == 0


@pytest.mark.parametrize("is_away", [False, True])
def test_a_runner_takes_its_presence_away_only_where_its_store_answered_it_last(
    ledger: Ledger, store: Leaving, is_away: bool
) -> None:
    runner = Runner(ledger, engine_factory("echo", model="org/m"), RunnerOptions(runner_id="m-1", pool="mistral"))
    who = Identity(pool="mistral", runner_id="m-1", model="org/m", engine="echo", host="h", started_at=5.0)
    announcer = Heartbeat(ledger, runner, who)
    announcer.tick()
    assert len(read_heartbeats(ledger)) == 1
    store.away_until = float("inf") if is_away else float("-inf")
    runner.stop()  # another state, which is told at once
    announcer.tick()
    announcer.leave()
    assert store.num_failures == is_away
    store.away_until = float("-inf")
    assert len(read_heartbeats(ledger)) == is_away
