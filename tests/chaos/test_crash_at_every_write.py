"""Stop the runner and the assembler before and after each store write in turn; another runner finishes the batch.

The writes of an unbroken run are counted first. Then, for each of them, a run is cut off there: everything after that
call fails as if the process were gone. A second runner takes over, and the invariants of docs/protocol.md are checked.
"""

import json
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from batchfile import Ledger, Runner, RunnerOptions
from batchfile.engine.base import Prepared
from batchfile.testing import EchoEngine, FaultyStore, ManualClock, MemoryStore, run_alone
from batchfile.types import Defaults, RoutingTable
from tests.helpers.engine import EchoPrepared
from tests.helpers.ledger import Draft, Limits, StatusReader, batch_key, create, input_key, read_batch
from tests.helpers.plan import plan_input

BATCH = "b"
NUM_REQUESTS = 70
EAGER = Limits(checkpoint_s=0)  # a checkpoint at every turn: as many writes to crash at as can be
ROUTING = RoutingTable(everything="local")


class Gone(BaseException):
    """The process is no more: nothing may catch this and go on."""


@dataclass
class Executions:
    """Which requests were started, and which of them were committed before a start (a broken promise)."""

    started: Counter[str] = field(default_factory=Counter)


class CountingEcho(EchoEngine):
    def __init__(self, executions: Executions) -> None:
        super().__init__(num_slots=8)
        self._executions = executions

    def add(self, key: int, prepared: Prepared) -> None:
        assert isinstance(prepared, EchoPrepared)
        self._executions.started[prepared.request.custom_id] += 1
        super().add(key, prepared)


def request_lines() -> list[bytes]:
    rows = []
    for number in range(NUM_REQUESTS):
        messages = [{"role": "user", "content": f"Write to lead {number}"}]
        params = {"messages": messages, "max_tokens": number % 7 + 1}
        rows.append(json.dumps({"custom_id": f"r{number}", "params": params}).encode())
    rows[5] = b"{rubbish"
    rows[9] = rows[8]
    rows[40] = json.dumps({"custom_id": "r40", "params": {"messages": [], "max_tokens": 1}}).encode()
    return rows


def new_ledger(clock: ManualClock, store: object, seed: int) -> Ledger:
    return Ledger(store=store, clock=clock, rng=random.Random(seed), limits=EAGER)  # type: ignore[arg-type]


def create_batch(ledger: Ledger) -> None:
    key = input_key(BATCH, "n")
    ledger.store.put(key, b"\n".join(request_lines()) + b"\n")
    planned = plan_input(ledger, BATCH, key, routing=ROUTING)
    create(ledger, Draft(batch_id=BATCH, routing=ROUTING, defaults=Defaults()), planned)


def run(ledger: Ledger, runner_id: str, executions: Executions) -> None:
    options = RunnerOptions(runner_id=runner_id, pool="local", only=BATCH, is_janitor=False)
    run_alone(Runner(ledger, lambda: CountingEcho(executions), options))


def results_of(store: MemoryStore) -> bytes:
    ledger = new_ledger(ManualClock(), store, 0)
    batch = read_batch(ledger, BATCH)
    assert batch is not None
    assert batch.state == "ended"
    assert batch.results is not None
    return b"".join(store.stream(batch.results.key))


def unbroken() -> tuple[bytes, int]:
    store, clock, num_writes = MemoryStore(), ManualClock(), 0

    def count(number: int, verb: str, key: str, phase: str) -> None:
        nonlocal num_writes
        num_writes = number

    create_batch(new_ledger(clock, store, 1))
    run(new_ledger(clock, FaultyStore(store, on_call=count), 2), "first", Executions())
    return results_of(store), num_writes


EXPECTED, NUM_WRITES = unbroken()


def test_an_unbroken_run_answers_every_request_once_in_order() -> None:
    lines = [json.loads(row) for row in EXPECTED.splitlines()]
    assert len(lines) == NUM_REQUESTS
    ids = [f"r{number}" for number in range(NUM_REQUESTS)]
    ids[5], ids[9] = None, "r8"  # type: ignore[call-overload]
    assert [line["custom_id"] for line in lines] == ids
    assert [i for i, line in enumerate(lines) if line["status"] == "errored"] == [5, 9, 40]
    assert NUM_WRITES > 10


@pytest.mark.parametrize("phase", ["before", "after"])
@pytest.mark.parametrize("at", range(1, NUM_WRITES + 1))
def test_a_crash_at_a_write_loses_nothing_and_repeats_nothing_committed(at: int, phase: str) -> None:
    clock = ManualClock()
    store = MemoryStore(clock)
    create_batch(new_ledger(clock, store, 1))

    def crash(number: int, verb: str, key: str, when: str) -> None:
        if number > at or (number == at and when == phase):
            raise Gone

    first, second = Executions(), Executions()
    with pytest.raises(Gone):
        run(new_ledger(clock, FaultyStore(store, on_call=crash), 2), "first", first)
    before = StatusReader(new_ledger(clock, store, 3)).read(BATCH)
    assert before is not None
    committed = committed_ids(store)
    store.kill("first")
    run(new_ledger(clock, store, 4), "second", second)
    assert results_of(store) == EXPECTED
    assert not committed & set(second.started), "a request that a checkpoint held ran again"
    after = StatusReader(new_ledger(clock, store, 5)).read(BATCH)
    assert after is not None
    assert after.status.counts.finished == after.status.total == NUM_REQUESTS
    assert after.status.counts.succeeded >= before.status.counts.succeeded
    assert json.loads(store.get(batch_key(BATCH)).data)["counts"]["errored"] == 3  # type: ignore[union-attr]


def committed_ids(store: MemoryStore) -> set[str]:
    """The requests whose results a shard record names."""
    found = set()
    for entry in store.list(f"batches/{BATCH}/shards/local/"):
        record = json.loads(store.get(entry.key).data)  # type: ignore[union-attr]
        for part in record["parts"]:
            part_object = store.get(part["key"])
            if part_object is None:
                continue  # the batch had ended, and its parts were swept
            for row in part_object.data.splitlines():
                found.add(json.loads(row)[2]["custom_id"])
    return found
