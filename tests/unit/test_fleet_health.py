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
    clock = ManualClock()
    ledger = Ledger(store=MemoryStore(clock), clock=clock)
    runner = PresenceRecord(
        pool="mistral", runner_id="m-1", model="org/m", engine="http", state=state, started_at=clock.now()
    )
    write_presence(ledger, runner)
    assert Fleet(ledger, load_settings(), StatusReader(ledger)).health()["mistral"].status == health
