"""What the tests of the ledger share: a memory store, a clock that stands still, and one batch."""

import json
import random

from batchfile import Ledger, Runner, RunnerOptions
from batchfile.testing import EchoEngine, ManualClock, MemoryStore, run_alone
from batchfile.types import Choice, Completion, Defaults, RoutingTable, Usage
from tests.helpers.ledger import (
    BatchRecord,
    Lease,
    Limits,
    Planned,
    ShardRecord,
    batch_key,
    batches,
    input_key,
    load,
    shard_key,
    shards,
)
from tests.helpers.lines import FinishedLine, encode_result
from tests.helpers.plan import plan_input

BATCH = "b"
LOCAL = RoutingTable(everything="local")


def line(number: int, **more: object) -> bytes:
    messages = [{"role": "user", "content": f"lead {number}"}]
    return json.dumps({"custom_id": f"r{number}", "params": {"messages": messages, "max_tokens": 4}, **more}).encode()


class World:
    """A memory store, a clock that stands still, and one batch."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock)
        self.ledger = Ledger(store=self.store, clock=self.clock, rng=random.Random(7), limits=Limits())

    def plan(self, rows: list[bytes], routing: RoutingTable = LOCAL) -> Planned:
        key = input_key(BATCH, "n")
        self.store.put(key, b"\n".join(rows))
        return plan_input(self.ledger, BATCH, key, routing=routing)

    def create(self, rows: list[bytes], routing: RoutingTable = LOCAL) -> Planned:
        planned = self.plan(rows, routing)
        batches.create(self.ledger, batches.Draft(batch_id=BATCH, routing=routing, defaults=Defaults()), planned)
        return planned

    @property
    def batch(self) -> BatchRecord:
        found = load(self.ledger, batch_key(BATCH), BatchRecord)
        assert found is not None
        return found.record

    def shard(self, pool: str, n: int) -> ShardRecord:
        found = load(self.ledger, shard_key(BATCH, pool, n), ShardRecord)
        assert found is not None
        return found.record

    def claim(self, n: int = 0, pool: str = "local", runner: str = "r1") -> Lease:
        plan = batches.read_plan(self.ledger, self.batch)
        held = shards.claim(self.ledger, self.batch, plan, pool, n, runner=runner)
        assert isinstance(held, Lease)
        return held

    def run(self, runner: str = "r1", pool: str = "local") -> None:
        options = RunnerOptions(runner_id=runner, pool=pool, only=BATCH, is_janitor=False)
        run_alone(Runner(self.ledger, lambda: EchoEngine(num_slots=4), options))

    def results(self) -> list[dict[str, object]]:
        assert self.batch.results is not None
        return [json.loads(row) for row in b"".join(self.store.stream(self.batch.results.key)).splitlines()]


def finished(number: int, place: int) -> FinishedLine:
    outcome = Completion(choices=(Choice("ok", "end_turn"),), usage=Usage(input_tokens=2, output_tokens=1))
    return FinishedLine(place, "succeeded", encode_result(f"r{number}", outcome, "echo"), outcome.usage)
