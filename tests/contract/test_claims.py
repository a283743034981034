"""Which shard a runner claims next, counted in requests to the store."""

import json
import random

from batchfile.clock import ManualClock
from batchfile.layout import input_key
from batchfile.ledger import batches
from batchfile.ledger.base import Ledger
from batchfile.ledger.planner import plan_input
from batchfile.runner.claims import Claims
from batchfile.store.memory import MemoryStore
from batchfile.store.metered import MeteredStore
from batchfile.words import Defaults, RoutingTable

BATCH, POOL, NUM_SHARDS = "b", "one", 100
POOLS = RoutingTable(pools={POOL: ("m",)})


def test_a_runner_that_comes_late_claims_what_nobody_holds_first() -> None:
    clock = ManualClock()
    store = MeteredStore(MemoryStore(clock))
    ledger = Ledger(store=store, clock=clock, rng=random.Random(3))
    rows = [{"custom_id": f"r{n}", "params": {"messages": [{"role": "user", "content": "hello"}]}} for n in range(200)]
    store.put(input_key(BATCH, "n"), "\n".join(map(json.dumps, rows)).encode())
    planned = plan_input(ledger, BATCH, input_key(BATCH, "n"), routing=POOLS, lines_per_range=2)
    batches.create(ledger, batches.Draft(batch_id=BATCH, routing=POOLS, defaults=Defaults()), planned)
    early = Claims(ledger, POOL, "early")
    held = [early.next() for _ in range(NUM_SHARDS - 3)]
    assert all(held)

    late = Claims(ledger, POOL, "late")
    before = sum(figure.num for figure in store.figures().values())
    assert late.next() is not None
    spent = sum(figure.num for figure in store.figures().values()) - before
    assert spent < 12, "requests for the one claim, of a hundred shards of which three are free"
    assert late.next() is not None
    assert late.next() is not None
    assert late.next() is None
