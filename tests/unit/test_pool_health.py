"""Whether a pool is up, by what its runners say."""

import json

import pytest

from api.ops.pools import PoolStatus
from batchfile import Ledger
from batchfile.ledger.status import StatusReader
from batchfile.plan.policy import REJECT
from batchfile.plan.submit import submit
from batchfile.testing import ManualClock, MemoryStore
from batchfile.types import Defaults
from tests.helpers.ledger import Draft, HeartbeatRecord, RunnerState, write_heartbeat
from tests.helpers.settings import load_settings


@pytest.mark.parametrize(
    ("state", "health"),
    [("loading", "down"), ("running", "up"), ("idle", "up"), ("draining", "up"), ("down", "down")],
)
def test_a_pool_is_up_while_a_runner_of_it_can_answer(state: RunnerState, health: str) -> None:
    assert pool_status_of(state, "http").health()["mistral"].status == health


@pytest.mark.parametrize(
    ("state", "num_waiting", "is_in_vain"),
    [
        ("running", 3, False),
        ("down", 3, True),
        ("loading", 3, True),
        (None, 3, True),
        (None, 0, False),
        ("down", 0, False),
    ],
)
def test_requests_wait_in_vain_where_no_runner_can_answer(
    state: RunnerState | None, num_waiting: int, is_in_vain: bool
) -> None:
    pool_status = pool_status_of(state or "idle", *(() if state is None else ("http",)), num_waiting=num_waiting)
    assert pool_status.is_waiting_in_vain() == is_in_vain


def test_the_engine_of_a_pool_is_what_its_runners_say_and_else_what_is_set() -> None:
    pool_status = pool_status_of("idle", "echo", "http", "echo")
    assert pool_status.pool("mistral").engine == "echo, http"
    assert pool_status.pool("llama-70b").engine == "vllm"


def test_what_a_runner_works_on_is_not_shown() -> None:
    """It may be another tenant's."""
    assert not any(runner.model_dump()["shards"] for runner in pool_status_of("running", "http").runners(None))


def pool_status_of(state: RunnerState, *engines: str, num_waiting: int = 0) -> PoolStatus:
    """With a runner of the pool mistral for each engine, and a batch of so many requests for it."""
    clock = ManualClock()
    ledger = Ledger(store=MemoryStore(clock), clock=clock)
    for number, engine in enumerate(engines):
        runner = HeartbeatRecord(
            pool="mistral",
            runner_id=f"m-{number}",
            model="org/m",
            engine=engine,
            state=state,
            started_at=clock.now(),
            shards=("batch_1/0",),
        )
        write_heartbeat(ledger, runner)
    if num_waiting:
        row = {"custom_id": "a", "params": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}}
        rows = [json.dumps(row | {"custom_id": f"r{n}"}).encode() + b"\n" for n in range(num_waiting)]
        draft = Draft(
            batch_id="batch_000000000001",
            routing=load_settings().routing(),
            defaults=Defaults(),
            stage="email",
            created_at=clock.now(),
        )
        submit(ledger, draft, rows, size=sum(map(len, rows)), policy=REJECT)
    return PoolStatus(ledger, load_settings(), StatusReader(ledger))
