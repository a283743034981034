"""Who counts as a living runner, by the store's clock alone."""

from dataclasses import replace

import pytest

from batchfile import Ledger, Runner, RunnerOptions
from batchfile.engine.base import EngineStats
from batchfile.testing import ManualClock, MemoryStore
from runners.heartbeat import Heartbeat, Identity, problem_of
from tests.helpers.engine import engine_factory
from tests.helpers.ledger import (
    HEARTBEAT_AGE_S_MAX,
    SWEEP_AFTER_S,
    HeartbeatRecord,
    RunnerTotals,
    keys,
    read_heartbeats,
    remove_heartbeat,
    sweep_heartbeats,
    write_heartbeat,
)

RECORD = HeartbeatRecord(
    pool="mistral",
    runner_id="m-1",
    model="org/m",
    engine="echo",
    state="running",
    started_at=5.0,
    latency_p50_s=0.5,
    totals=RunnerTotals(succeeded=3),
    shards=("batch_1/0", "batch_1/7"),
    commits={"org/m": "a1" * 20},
)


def world() -> tuple[Ledger, ManualClock]:
    clock = ManualClock()
    return Ledger(store=MemoryStore(clock), clock=clock), clock


def test_what_a_runner_writes_is_read_back_whole() -> None:
    ledger, _ = world()
    write_heartbeat(ledger, RECORD)
    assert read_heartbeats(ledger) == [RECORD]


def test_a_runner_lives_for_a_minute_after_it_wrote() -> None:
    ledger, clock = world()
    write_heartbeat(ledger, RECORD)
    clock.sleep(HEARTBEAT_AGE_S_MAX - 10)
    write_heartbeat(ledger, replace(RECORD, runner_id="m-2"))
    assert [record.runner_id for record in read_heartbeats(ledger)] == ["m-1", "m-2"]
    clock.sleep(20)
    assert [record.runner_id for record in read_heartbeats(ledger)] == ["m-2"]
    clock.sleep(HEARTBEAT_AGE_S_MAX)
    assert read_heartbeats(ledger) == []


def test_a_pool_is_read_alone_and_no_other_that_begins_like_it() -> None:
    ledger, _ = world()
    for pool in ("mistral", "mistral-2", "llama"):
        write_heartbeat(ledger, replace(RECORD, pool=pool))
    assert [record.pool for record in read_heartbeats(ledger, "mistral")] == ["mistral"]
    assert [record.pool for record in read_heartbeats(ledger)] == ["llama", "mistral", "mistral-2"]


def test_a_removed_runner_is_gone_at_once() -> None:
    ledger, _ = world()
    write_heartbeat(ledger, RECORD)
    remove_heartbeat(ledger, RECORD.pool, RECORD.runner_id)
    assert read_heartbeats(ledger) == []


def test_a_document_that_can_not_be_read_hides_no_other() -> None:
    ledger, _ = world()
    write_heartbeat(ledger, RECORD)
    ledger.store.put(keys.heartbeat_key("mistral", "broken"), b"{")
    ledger.store.put(keys.heartbeat_key("mistral", "newer"), b'{"version": 99}')
    assert read_heartbeats(ledger) == [RECORD]


def test_only_what_is_older_than_a_day_is_swept() -> None:
    ledger, clock = world()
    assert sweep_heartbeats(ledger) == 0
    write_heartbeat(ledger, replace(RECORD, runner_id="old"))
    clock.sleep(3600)
    write_heartbeat(ledger, replace(RECORD, runner_id="young"))
    clock.sleep(SWEEP_AFTER_S - 1800)
    write_heartbeat(ledger, RECORD)
    assert sweep_heartbeats(ledger) == 1
    left = [entry.key for entry in ledger.store.list(keys.heartbeat_prefix())]
    assert left == [keys.heartbeat_key("mistral", "m-1"), keys.heartbeat_key("mistral", "young")]


def test_what_the_engine_failed_is_told_and_not_what_never_reached_it() -> None:
    ledger, _ = world()
    runner = Runner(ledger, engine_factory("echo", model="org/m"), RunnerOptions(runner_id="m-1", pool="mistral"))
    runner.runner_stats.succeeded, runner.runner_stats.failed, runner.runner_stats.rejected = 5, 2, 1
    who = Identity(pool="mistral", runner_id="m-1", model="org/m", engine="echo", host="h", started_at=5.0)
    Heartbeat(ledger, runner, who).tick()
    assert read_heartbeats(ledger)[0].totals == RunnerTotals(succeeded=5, failed=2, rejected=1)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (None, "The endpoint cannot be reached"),
        (401, "The endpoint rejects the API key (401)"),
        (403, "The endpoint denies access (403)"),
        (404, "The endpoint does not know the address or the model (404)"),
        (429, "The endpoint accepts no more requests for now (429)"),
        (502, "The endpoint answers with an error (502)"),
    ],
)
def test_a_runner_says_why_its_endpoint_is_down_without_its_address(status: int | None, words: str) -> None:
    down = EngineStats(down_s=9.0, down_status=status, down_reason="https://secret.internal/v1: secret-key is wrong")
    assert problem_of(down) == words
