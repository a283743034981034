"""How well a runner is fed while many batches are open, on a store that takes 20 ms for each call.

One runner with its default threads, the janitor too, in virtual time: the same on every machine. It begins when all the
batches are open already; each has more work than it can do in the time that is measured. Store requests are counted by
verb, the janitor's among them. Run: `python tests/bench/claims.py` (`--batches 500` for one row).
"""

import argparse
import json
import random
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from batchfile import Ledger, Runner, RunnerOptions
from batchfile.testing import EchoEngine, MemoryStore
from batchfile.types import Defaults, RoutingTable
from tests.bench.latent import LatentStore
from tests.helpers.ledger import IN_FLIGHT, batches, keys
from tests.helpers.plan import plan_input
from tests.helpers.store import MeteredStore, Store
from tests.sim.green import installed
from tests.sim.world import Process, World

POOL = "one"
ROUTING = RoutingTable(pools={POOL: ("m",)})
LINES_A_BATCH = 2048  # 64 shards
SLOTS, REQUEST_S = 32, 1.0
FULL_S = 60.0
GOALS = {4: (0.95, 2.0), 100: (0.95, 2.0), 500: (0.95, 2.0), 1000: (0.95, 2.0)}  # share at least, first dispatch within


@dataclass(frozen=True, kw_only=True)
class Row:
    """`share` of what the engine could have done since it was ready. `requests` in the seconds that were measured."""

    batches: int
    share: float
    first_dispatch_s: float
    requests: dict[str, int]

    @property
    def is_good(self) -> bool:
        share_min, first_s_max = GOALS.get(self.batches, (0.95, 2.0))
        return self.share >= share_min and self.first_dispatch_s <= first_s_max


def fill(store: Store, world: World, num_batches: int) -> None:
    """Open batches that share one input and one plan."""
    ledger = Ledger(store=store, clock=_WorldClock(world), rng=random.Random(1))
    rows = [{"custom_id": f"r{n}", "params": {"messages": [{"role": "user", "content": "hello"}]}} for n in range(64)]
    data = "\n".join(json.dumps(rows[n % 64] | {"custom_id": f"r{n}"}) for n in range(LINES_A_BATCH))
    key = keys.input_key("shared", "n")
    store.put(key, data.encode())
    planned = plan_input(ledger, "shared", key, routing=ROUTING, lines_per_range=32)
    for number in range(num_batches):
        draft = batches.Draft(batch_id=f"batch{number:04}", routing=ROUTING, defaults=Defaults())
        batches.create(ledger, draft, planned)


class _WorldClock:
    """Of whoever does not wait."""

    def __init__(self, world: World) -> None:
        self._world = world

    def now(self) -> float:
        return self._world.now

    monotonic = now

    def sleep(self, seconds: float) -> None:
        raise AssertionError("a store does not sleep")


def measure(num_batches: int, *, latency_s: float, seconds: float) -> Row:
    world = World("claims")
    process = Process(world, "runner")
    inner = MemoryStore(_WorldClock(world))
    fill(inner, world, num_batches)
    store = MeteredStore(LatentStore(inner, process.clock, latency_s), clock=process.clock.monotonic)
    ledger = Ledger(store=store, clock=process.clock, rng=random.Random(2), num_in_flight=IN_FLIGHT)

    def engine() -> EchoEngine:
        return EchoEngine(num_slots=SLOTS, latency_s=REQUEST_S, clock=process.clock)

    runner = Runner(ledger, engine, RunnerOptions(runner_id="runner", pool=POOL))
    world.spawn(process, runner.run)
    world.run(lambda: False, for_s=seconds)
    runner_stats = runner.runner_stats
    first_s = (
        seconds
        if runner_stats.first_dispatch_at is None
        else runner_stats.first_dispatch_at - (runner_stats.engine_ready_at or 0.0)
    )
    requests: Counter[str] = Counter()
    for call, figure in store.figures().items():
        requests[call.verb] += figure.num
    world.close()
    return Row(
        batches=num_batches,
        share=round(runner_stats.succeeded / (SLOTS * seconds / REQUEST_S), 3),
        first_dispatch_s=round(first_s, 2),
        requests=dict(sorted(requests.items())),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="*", default=[4, 100, 500, 1000])
    parser.add_argument("--latency-ms", type=float, default=20.0)
    parser.add_argument("--seconds", type=float, default=FULL_S, help="virtual")
    args = parser.parse_args()
    rows = []
    with installed(is_patient=False):
        for num_batches in args.batches:
            row = measure(num_batches, latency_s=args.latency_ms / 1000, seconds=args.seconds)
            rows.append(row)
            print(f"{row.batches:>6} batches: {row.share:6.1%} of the possible work, first dispatch after", end=" ")
            print(f"{row.first_dispatch_s:.2f} s, requests {row.requests}")
    print(json.dumps({"bench": "claims", "seconds": args.seconds, "rows": [asdict(row) for row in rows]}))
    return 0 if all(row.is_good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
