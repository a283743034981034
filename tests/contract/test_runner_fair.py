"""One batch's slow requests, or what a store does not give of it, hold up no other batch's requests. With threads."""

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from batchfile import Ledger, Runner, RunnerOptions
from batchfile.engine.base import SchemaUnchecked
from batchfile.errors import EngineDead
from batchfile.testing import EchoEngine, EchoFaults, FaultyEchoEngine, MemoryStore
from batchfile.types import Defaults, Request, RoutingTable
from tests.helpers.engine import EchoPrepared
from tests.helpers.ledger import batches, input_key
from tests.helpers.plan import plan_input
from tests.helpers.store import SystemClock

LOCAL = RoutingTable(everything="local")
SCHEMA = {"type": "object", "properties": {"subject": {"type": "string"}}, "required": ["subject"]}
GOOD = '{"subject": "hello"}'
HANGS_S_MAX = 60.0  # only against a test that would not end


class HangingStore(MemoryStore):
    """The prefetcher's reads of the input of `batch_id` do not return until `go` is set."""

    def __init__(self, batch_id: str) -> None:
        super().__init__(SystemClock())
        self.key = input_key(batch_id, "n")
        self.go = threading.Event()
        self.is_hanging = threading.Event()

    def stream(self, key: str, *args: Any, **named: Any) -> Iterator[bytes]:
        if key == self.key and threading.current_thread().name == "prefetcher":
            self.is_hanging.set()
            self.go.wait(HANGS_S_MAX)
        return super().stream(key, *args, **named)


def create(
    ledger: Ledger, batch_id: str, params: list[dict[str, Any]], *, schema: dict[str, Any] | None = None
) -> None:
    rows = [
        {"custom_id": f"r{n}", "params": {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 9, **more}}
        for n, more in enumerate(params)
    ]
    ledger.store.put(input_key(batch_id, "n"), "\n".join(map(json.dumps, rows)).encode())
    planned = plan_input(ledger, batch_id, input_key(batch_id, "n"), routing=LOCAL, lines_per_range=8)
    defaults = Defaults(output_schema=schema)
    batches.create(ledger, batches.Draft(batch_id=batch_id, routing=LOCAL, defaults=defaults), planned)


@contextmanager
def running(ledger: Ledger, engine: Callable[[], EchoEngine]) -> Iterator[Runner]:
    runner = Runner(ledger, engine, RunnerOptions(runner_id="r", pool="local", is_janitor=False))
    thread = threading.Thread(target=runner.run)
    thread.start()
    try:
        yield runner
    finally:
        runner.stop()
        thread.join(HANGS_S_MAX)
        assert not thread.is_alive()


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANGS_S_MAX / 2
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def has_ended(ledger: Ledger, batch_id: str) -> bool:
    batch = batches.read_batch(ledger, batch_id)
    return batch is not None and batch.state == "ended"


def test_another_attempt_is_prepared_while_the_store_does_not_give_another_batchs_input() -> None:
    store = HangingStore("ill")
    ledger = Ledger(store=store, clock=SystemClock(), rng=random.Random(3))
    create(ledger, "good", [{"seed": 7}] * 8, schema=SCHEMA)
    answer = threading.Event()

    class Waiting(FaultyEchoEngine):
        """Answers once the prefetcher waits for the store."""

        def step(self) -> list[Any]:
            answer.wait(HANGS_S_MAX)
            return super().step()

    with running(ledger, lambda: Waiting(num_slots=16, guided=GOOD, faults=EchoFaults(schema_mismatches=2))) as runner:
        try:
            wait_for(lambda: runner.num_in_flight == 8)
            create(ledger, "ill", [{}])
            assert store.is_hanging.wait(HANGS_S_MAX)
            answer.set()
            wait_for(lambda: has_ended(ledger, "good"))
        finally:
            answer.set()
            store.go.set()


class Compiling(EchoEngine):
    """Has to compile each schema first. Those with a "slow" in them take until `go` is set."""

    def __init__(self, go: threading.Event, **options: Any) -> None:
        super().__init__(num_slots=16, **options)
        self._go = go
        self._known: set[str] = set()
        self.owners: set[str] = set()

    def prepare(self, request: Request) -> EchoPrepared:
        schema = json.dumps(request.sampling.json_schema)
        if request.sampling.json_schema is None or schema in self._known:
            return super().prepare(request)

        def finish(owner: str) -> EchoPrepared:
            self.owners.add(owner)
            if "slow" in schema:
                self._go.wait(HANGS_S_MAX)
            self._known.add(schema)
            return self.prepare(request)

        raise SchemaUnchecked(finish)


def guided(name: str) -> dict[str, Any]:
    return {"output_config": {"format": {"type": "json_schema", "schema": {"title": name}}}}


def test_requests_wait_for_their_schemas_aside_and_no_other_batch_waits_for_them() -> None:
    ledger = Ledger(store=MemoryStore(SystemClock()), clock=SystemClock(), rng=random.Random(3))
    create(ledger, "slow", [guided(f"slow {n}") if n % 4 else {} for n in range(1000)])
    go = threading.Event()
    engine = Compiling(go)
    with running(ledger, lambda: engine) as runner:
        try:
            wait_for(lambda: runner.runner_stats.succeeded >= 16 and len(runner._state.unchecked) > 64)
            create(ledger, "quick", [{}] * 50)
            wait_for(lambda: has_ended(ledger, "quick"))
            assert len(runner._state.unchecked) <= 64 + 8, "no more of the batch is claimed than waits"
            assert not has_ended(ledger, "slow")
            go.set()
            wait_for(lambda: has_ended(ledger, "slow"))
        finally:
            go.set()
    assert engine.owners == {"slow"}


def test_a_stop_does_not_wait_for_a_schema() -> None:
    ledger = Ledger(store=MemoryStore(SystemClock()), clock=SystemClock(), rng=random.Random(3))
    create(ledger, "slow", [guided("slow")])
    go = threading.Event()
    try:
        with running(ledger, lambda: Compiling(go)) as runner:
            wait_for(lambda: bool(runner.shards_held(1)))
        assert not go.is_set()
    finally:
        go.set()


def test_an_engine_that_has_died_prepares_nothing_for_the_next() -> None:
    """What a closed engine prepares may not have been checked."""
    ledger = Ledger(store=MemoryStore(SystemClock()), clock=SystemClock(), rng=random.Random(3))
    create(ledger, "one", [{}])
    prepared_by: list[str] = []

    class Mortal(EchoEngine):
        name = "first"

        def prepare(self, request: Request) -> EchoPrepared:
            prepared_by.append(self.name)
            return super().prepare(request)

        def step(self) -> list[Any]:
            raise EngineDead("on purpose")

    class Next(EchoEngine):
        def prepare(self, request: Request) -> EchoPrepared:
            prepared_by.append("next")
            return super().prepare(request)

    built: list[EchoEngine] = []

    def build() -> EchoEngine:
        if built:
            create(ledger, "two", [{}])
            time.sleep(3)  # in which the prefetcher would find it
        built.append(Next() if built else Mortal())
        return built[-1]

    with running(ledger, build):
        wait_for(lambda: has_ended(ledger, "two"))
    assert prepared_by == ["first", "next"]
