"""What a batch waits for, from the heartbeats of its pools."""

from typing import Any

import pytest

from batchfile import Ledger
from batchfile.ledger.batch_status import Pool, PoolProgress, Waiting
from batchfile.ledger.waiting import pool_problem, waiting_for
from batchfile.testing import ManualClock, MemoryStore
from tests.helpers.ledger import HeartbeatRecord, Roster, Seen, read_roster, write_heartbeat
from tests.unit.statuses import status

NOW = 10_000.0


def runner(state: Any, *, pool: str = "mistral", started_at: float = NOW - 200.0, **more: Any) -> HeartbeatRecord:
    return HeartbeatRecord(
        pool=pool, runner_id="m-1", model="m", engine="vllm", state=state, started_at=started_at, **more
    )


def found(*live: HeartbeatRecord, num_leased: int = 0, num_done: int = 1, is_operator: bool = True, **more: Any) -> Any:
    progress = PoolProgress(num_shards=3, num_done=num_done, num_leased=num_leased, num_requests=9, num_finished=3)
    shown = status(**{"created_at": NOW - 5_000, "updated_at": NOW - 900, "pools": {"mistral": progress}} | more)
    last_seen = {"mistral": Seen(at=NOW, num_runners=len(live))} if live else more.get("seen", {})
    return waiting_for(shown, Roster(live=live, last_seen=last_seen, read_at=NOW), is_operator=is_operator)


def said(*live: HeartbeatRecord, **more: Any) -> list[str]:
    return [waiting.message for waiting in found(*live, **more)]


def test_a_pool_without_a_live_runner_is_named_with_the_time_since_one_was_seen() -> None:
    roster = Roster(live=(), last_seen={"mistral": Seen(at=NOW - 845, num_runners=1)}, read_at=NOW)
    progress = PoolProgress(num_shards=3, num_done=1, num_leased=0, num_requests=9, num_finished=3)
    held = status(created_at=NOW - 5_000, updated_at=NOW - 900, pools={"mistral": progress})
    assert waiting_for(held, roster, is_operator=False) == (
        Waiting(
            pool="mistral",
            cause="no_runner",
            message="No live runner for pool mistral (0 of 1) for 14 min",
            since=NOW - 845,
        ),
    )
    assert said() == ["No live runner for pool mistral for 15 min"], "since anything changed"
    assert said(runner("idle", pool="llama")) != []


@pytest.mark.parametrize(
    ("live", "message"),
    [
        (runner("loading"), "1 runner of pool mistral is loading the model for 3 min"),
        (runner("down"), "The endpoint of pool mistral is unavailable to 1 runner"),
        (runner("running"), None),
        (runner("idle"), None),
    ],
    ids=["loading", "down", "running", "idle"],
)
def test_a_runner_that_cannot_work_is_why(live: HeartbeatRecord, message: str | None) -> None:
    assert said(live) == ([] if message is None else [message])


def test_a_batch_that_was_set_aside_is_said_and_an_object_is_named_only_to_an_operator() -> None:
    aside = runner("running", set_aside={"batch_a": "batches/batch_a/input: access denied"})
    assert said(aside) == ["1 runner of pool mistral set this batch aside: batches/batch_a/input: access denied"]
    assert said(aside, is_operator=False) == [
        "1 runner of pool mistral set this batch aside: one of its objects cannot be read or written"
    ]
    assert said(aside, num_leased=1) == []
    assert said(runner("running", set_aside={"batch_b": "another one"})) == []


def test_nothing_is_waited_for_where_shards_are_leased_or_done_or_the_batch_has_ended() -> None:
    assert said(num_leased=1, updated_at=NOW - 10) == [], "a runner without heartbeats works on it"
    assert said(num_leased=1, updated_at=NOW - 120) != [], "it died"
    assert said(runner("draining"), num_leased=1, updated_at=NOW - 10) == []
    assert said(num_done=3) == []
    assert said(state="ended") == said(state="planning") == []


def test_a_roster_costs_a_listing_and_a_read_for_each_live_runner_and_remembers_dead_ones() -> None:
    clock = ManualClock()
    ledger = Ledger(store=MemoryStore(clock), clock=clock)
    write_heartbeat(ledger, runner("running"))
    died_at = clock.now()
    clock.sleep(840.0)
    write_heartbeat(ledger, runner("running", pool="llama"))
    roster = read_roster(ledger)
    assert [one.pool for one in roster.live] == ["llama"]
    assert roster.last_seen["mistral"] == Seen(at=died_at, num_runners=1)
    assert roster.read_at == clock.now()


def problem(*live: HeartbeatRecord, seen: dict[str, Seen] | None = None, oldest: float | None = None) -> str | None:
    pool = Pool(name="mistral", model="m", engine="vllm", stages=[], runners={}, open_batches=0, pending_requests=0)
    found = pool_problem(pool, Roster(live=live, last_seen=seen or {}, read_at=NOW), oldest)
    return None if found is None else found.message


def test_a_pool_says_why_none_of_its_runners_can_answer() -> None:
    assert problem() == "No runner for pool mistral within the last day"
    assert problem(oldest=NOW - 845) == "No live runner for pool mistral for 14 min"
    assert (
        problem(seen={"mistral": Seen(at=NOW - 120, num_runners=2)})
        == "No live runner for pool mistral (0 of 2) for 2 min"
    )
    assert problem(runner("idle", pool="llama")) == "No runner for pool mistral within the last day"
    assert problem(runner("loading")) == "1 runner of pool mistral is loading the model for 3 min"
    assert problem(runner("loading"), runner("running")) is None
    down = runner("down", problem="The endpoint rejects the API key (401)")
    assert (
        problem(down)
        == "The endpoint of pool mistral is unavailable to 1 runner: The endpoint rejects the API key (401)"
    )
    assert said(down) == [problem(down)], "the batch that waits says the same"
    assert said(down, num_leased=1, updated_at=NOW - 10) == [problem(down)], "it keeps its leases meanwhile"
    assert said(down, runner("draining"), num_leased=1, updated_at=NOW - 10) == []
