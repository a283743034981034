"""What the tests of ill batches share: a store in virtual time with healthy batches and an ill one."""

import json
import random
from collections.abc import Callable

from batchfile import Ledger, Runner, RunnerOptions
from batchfile.testing import EchoEngine, FaultyStore, Ill, ManualClock, MemoryStore, run_alone
from batchfile.types import Defaults, RoutingTable
from tests.helpers.faults import IllAnswer
from tests.helpers.ledger import batches, keys
from tests.helpers.plan import plan_input

POOL = RoutingTable(everything="local")
HEALTHY = ["b0", "b1", "b3", "b4", "b5"]
ILL = "b2"
NUM_REQUESTS = 8
PHASE_S_MAX = 7200.0

REFUSALS: list[IllAnswer] = ["400", "403", "405", "501", "EACCES"]
UNANSWERED: list[IllAnswer] = ["500", "EIO"]


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

    def fall_ill(self, name: str, answer: IllAnswer, **more: bool) -> None:
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
