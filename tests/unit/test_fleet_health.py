"""Whether a pool is up, by what its runners say."""

import pytest

from api.fleet import Fleet
from batchfile.clock import ManualClock
from batchfile.ledger.base import Ledger
from batchfile.ledger.presence import write_presence
from batchfile.ledger.status import StatusReader
from batchfile.records import PresenceRecord, RunnerState
from batchfile.settings import load_settings
from batchfile.store.memory import MemoryStore


@pytest.mark.parametrize(
    ("state", "health"),
    [("loading", "down"), ("running", "up"), ("idle", "up"), ("draining", "up"), ("down", "down")],
)
def test_a_pool_is_up_while_a_runner_of_it_can_answer(state: RunnerState, health: str) -> None:
    assert fleet_of(state, "http").health()["mistral"].status == health


def test_the_engine_of_a_pool_is_what_its_runners_say_and_else_what_is_set() -> None:
    fleet = fleet_of("idle", "echo", "http", "echo")
    assert fleet.pool("mistral").engine == "echo, http"
    assert fleet.pool("llama-70b").engine == "vllm"


def test_what_a_runner_works_on_is_not_shown() -> None:
    """It may be another tenant's."""
    assert not any(runner.model_dump()["shards"] for runner in fleet_of("running", "http").runners(None))


def fleet_of(state: RunnerState, *engines: str) -> Fleet:
    """With a runner of the pool mistral for each engine."""
    clock = ManualClock()
    ledger = Ledger(store=MemoryStore(clock), clock=clock)
    for number, engine in enumerate(engines):
        runner = PresenceRecord(
            pool="mistral",
            runner_id=f"m-{number}",
            model="org/m",
            engine=engine,
            state=state,
            started_at=clock.now(),
            shards=("batch_1/0",),
        )
        write_presence(ledger, runner)
    return Fleet(ledger, load_settings(), StatusReader(ledger))
