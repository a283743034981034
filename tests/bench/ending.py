"""What the end of a large batch costs: store requests and virtual seconds, at 20 ms for each call.

Three processes look at it every two seconds until one of them has ended it, as the janitors of a service do. One batch
is complete; one was canceled with half of its shards done; one was canceled before anything of it ran. Time ends when
the parts are swept. Run: `python tests/bench/ending.py` (970 shards).
"""

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from batchfile import Ledger
from batchfile.testing import MemoryStore
from batchfile.types import Choice, Completion, Defaults, RoutingTable, Usage
from tests.bench.latent import LatentStore
from tests.helpers.ledger import IN_FLIGHT, BatchRecord, Lease, Plan, batches, ending, keys, shards
from tests.helpers.lines import FinishedLine, encode_result
from tests.helpers.plan import plan_input
from tests.helpers.store import MeteredStore
from tests.sim.green import installed
from tests.sim.world import Process, World

BATCH, POOL = "b", "one"
ROUTING = RoutingTable(pools={POOL: ("m",)})
LINES_A_SHARD = 32
PROCESSES, LOOK_S = 3, 2.0
SECONDS_MAX = 5.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """`seconds` until nothing is left to do. `requests` of all processes."""

    kind: str
    seconds: float
    requests: dict[str, int]


class _WorldClock:
    """Of whoever does not wait."""

    def __init__(self, world: World) -> None:
        self._world = world

    def now(self) -> float:
        return self._world.now

    monotonic = now

    def sleep(self, seconds: float) -> None:
        raise AssertionError("a store does not sleep")


def build(ledger: Ledger, num_shards: int) -> tuple[BatchRecord, Plan]:
    rows = (
        {"custom_id": f"r{n}", "params": {"messages": [{"role": "user", "content": "hello"}]}}
        for n in range(num_shards * LINES_A_SHARD)
    )
    key = keys.input_key(BATCH, "n")
    ledger.store.put(key, "\n".join(map(json.dumps, rows)).encode())
    planned = plan_input(ledger, BATCH, key, routing=ROUTING, lines_per_range=LINES_A_SHARD)
    batch = batches.create(ledger, batches.Draft(batch_id=BATCH, routing=ROUTING, defaults=Defaults()), planned)
    return batch, planned.plan


def work(ledger: Ledger, batch: BatchRecord, plan: Plan, numbers: Iterable[int]) -> None:
    """These shards are done."""
    answer = Completion(choices=(Choice("an answer", "end_turn"),), usage=Usage())
    for n in numbers:
        held = shards.claim(ledger, batch, plan, POOL, n, runner="r")
        assert isinstance(held, Lease)
        lines = [
            FinishedLine(line, "succeeded", encode_result(f"r{n * LINES_A_SHARD + line}", answer, "m"), Usage())
            for line in range(LINES_A_SHARD)
        ]
        shards.checkpoint(ledger, held, lines, has_dispatched=True)


def measure(kind: str, num_shards: int, latency_s: float) -> Row:
    world = World("ending")
    inner = MemoryStore(_WorldClock(world))
    ledger = Ledger(store=inner, clock=_WorldClock(world), rng=random.Random(1))
    batch, plan = build(ledger, num_shards)
    work(ledger, batch, plan, {"complete": range(num_shards), "canceled": range(0, num_shards, 2)}.get(kind, ()))
    if kind != "complete":
        batches.end(ledger, BATCH, "canceled")
    began_at, stores = world.now, []
    ended_at = [began_at]

    def end(process: Process, store: MeteredStore) -> None:
        rng = random.Random(process.name)
        mine = Ledger(store=store, clock=process.clock, rng=rng, num_in_flight=IN_FLIGHT)
        while True:
            ended = ending.finish(mine, BATCH, runner=process.name)
            if ended is not None and ended.state == "ended":
                ended_at.append(world.now)
                return
            process.clock.sleep(LOOK_S)

    for number in range(PROCESSES):
        process = Process(world, f"p{number}")
        stores.append(MeteredStore(LatentStore(inner, process.clock, latency_s), clock=process.clock.monotonic))
        world.spawn(process, end, process, stores[-1])
    world.run(lambda: len(ended_at) > PROCESSES, for_s=1000.0)
    world.close()
    requests: Counter[str] = Counter()
    for store in stores:
        for call, figure in store.figures().items():
            requests[call.verb] += figure.num
    return Row(kind=kind, seconds=round(ended_at[1] - began_at, 2), requests=dict(sorted(requests.items())))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=970)
    parser.add_argument("--latency-ms", type=float, default=20.0)
    args = parser.parse_args()
    rows = []
    with installed(is_patient=False):
        for kind in ("complete", "canceled", "untouched"):
            row = measure(kind, args.shards, args.latency_ms / 1000)
            rows.append(row)
            print(f"{row.kind:>10}: {row.seconds:6.2f} s, requests {row.requests}")
    print(json.dumps({"bench": "ending", "shards": args.shards, "rows": [asdict(row) for row in rows]}))
    return 0 if all(row.seconds <= SECONDS_MAX for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
