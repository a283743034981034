"""What the tests of reuse share: several batches in a memory store, and an engine that counts what it generates."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from batchfile import Ledger, Runner, RunnerOptions
from batchfile.engine.base import Prepared
from batchfile.testing import EchoEngine, ManualClock, MemoryStore, run_alone
from batchfile.types import Defaults, RoutingTable
from tests.helpers.engine import EchoPrepared
from tests.helpers.ledger import BatchRecord, Draft, Planned, batches, input_key
from tests.helpers.plan import Reuse, plan_input
from tests.helpers.store import Store

LOCAL = RoutingTable(everything="local")


def line(custom_id: str, text: str, metadata: object = None, **params: object) -> bytes:
    """A request that is answered the same each time."""
    params = {"messages": [{"role": "user", "content": text}], "temperature": 0, **params}
    more = {} if metadata is None else {"metadata": metadata}
    return json.dumps({"custom_id": custom_id, "params": params, **more}).encode()


@dataclass
class Generated:
    custom_ids: list[str] = field(default_factory=list)


class CountingEcho(EchoEngine):
    """Notes which requests it was given."""

    def __init__(self, generated: Generated) -> None:
        super().__init__(num_slots=8)
        self._generated = generated

    def add(self, key: int, prepared: Prepared) -> None:
        assert isinstance(prepared, EchoPrepared)
        self._generated.custom_ids.append(prepared.request.custom_id)
        super().add(key, prepared)


class World:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock)
        self.ledger = self.ledger_over(self.store)
        self.generated = Generated()

    def ledger_over(self, store: Store) -> Ledger:
        return Ledger(store=store, clock=self.clock, rng=random.Random(7))

    def plan(
        self,
        batch_id: str,
        rows: Sequence[bytes],
        reuse: Reuse | None = None,
        *,
        ledger: Ledger | None = None,
        defaults: Defaults | None = None,
        stage: str | None = None,
        routing: RoutingTable = LOCAL,
        lines_per_range: int | None = None,
    ) -> Planned:
        self.store.put(input_key(batch_id, "n"), b"\n".join(rows))
        return plan_input(
            ledger or self.ledger,
            batch_id,
            input_key(batch_id, "n"),
            routing=routing,
            stage=stage,
            defaults=defaults or Defaults(),
            reuse=reuse,
            lines_per_range=lines_per_range,
        )

    def create(
        self, batch_id: str, planned: Planned, *, defaults: Defaults | None = None, routing: RoutingTable = LOCAL
    ) -> BatchRecord:
        draft = Draft(batch_id=batch_id, routing=routing, defaults=defaults or Defaults())
        return batches.create(self.ledger, draft, planned)

    def run(self, batch_id: str) -> BatchRecord:
        """What the engine generated is in `generated`, which is emptied before."""
        self.generated = Generated()
        options = RunnerOptions(runner_id="r", pool="local", only=batch_id)
        run_alone(Runner(self.ledger, lambda: CountingEcho(self.generated), options))
        ended = batches.read_batch(self.ledger, batch_id)
        assert ended is not None
        assert ended.state == "ended"
        return ended

    def finished(self, batch_id: str, rows: Sequence[bytes], reuse: Reuse | None = None) -> BatchRecord:
        """A batch that is planned, created and run."""
        self.create(batch_id, self.plan(batch_id, rows, reuse))
        return self.run(batch_id)

    def answers(self, batch: BatchRecord) -> list[tuple[str, str]]:
        """The custom_id of each result, and its text or the type of its error."""
        assert batch.results is not None
        rows = [json.loads(row) for row in b"".join(self.store.stream(batch.results.key)).splitlines()]
        return [
            (row["custom_id"], row["message"]["content"][0]["text"] if row["message"] else row["error"]["type"])
            for row in rows
        ]


def from_(*sources: BatchRecord, is_sampled_too: bool = False) -> Reuse:
    return Reuse(sources=sources, is_sampled_too=is_sampled_too)
