"""One batch's slow requests, or what a store does not give of it, hold up no other batch's requests. With threads."""

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from batchfile.clock import SystemClock
from batchfile.engine.echo import EchoEngine
from batchfile.layout import input_key
from batchfile.ledger import batches
from batchfile.ledger.base import Ledger
from batchfile.ledger.planner import plan_input
from batchfile.runner.runner import Runner, RunnerOptions
from batchfile.store.memory import MemoryStore
from batchfile.words import Defaults, RoutingTable

LOCAL = RoutingTable(everything="local")
SCHEMA = {"type": "object", "properties": {"subject": {"type": "string"}}, "required": ["subject"]}
GOOD = '{"subject": "hello"}'
HANGS_S_MAX = 60.0  # only against a test that would not end


class HangingStore(MemoryStore):
    """The feeder's reads of the input of `batch_id` do not return until `go` is set."""

    def __init__(self, batch_id: str) -> None:
        super().__init__(SystemClock())
        self.key = input_key(batch_id, "n")
        self.go = threading.Event()
        self.is_hanging = threading.Event()

    def stream(self, key: str, *args: Any, **named: Any) -> Iterator[bytes]:
        if key == self.key and threading.current_thread().name == "feeder":
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
    runner = Runner(ledger, engine, RunnerOptions(runner_id="r", pool="local", is_steward=False))
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

    class Waiting(EchoEngine):
        """Answers once the feeder waits for the store."""

        def step(self) -> list[Any]:
            answer.wait(HANGS_S_MAX)
            return super().step()

    with running(ledger, lambda: Waiting(num_slots=16, guided=GOOD, misfits=2)) as runner:
        try:
            wait_for(lambda: runner.num_in_flight == 8)
            create(ledger, "ill", [{}])
            assert store.is_hanging.wait(HANGS_S_MAX)
            answer.set()
            wait_for(lambda: has_ended(ledger, "good"))
        finally:
            answer.set()
            store.go.set()
