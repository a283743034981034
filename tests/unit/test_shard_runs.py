"""The shards of a batch as people see them."""

from typing import Any

from batchfile.ledger.shard_runs import STEPS, ShardRow, shard_list

NOW = 10_000.0


def row(
    n: int, state: Any, *, pool: str = "mistral", age: float = 0.0, finished: int = 10, runner: str = "r1"
) -> ShardRow:
    return ShardRow(
        pool=pool, n=n, state=state, runner=runner, num_requests=10, num_finished=finished, modified_at=NOW - age
    )


def shown(*rows: ShardRow, created_at: float = NOW - 600.0) -> Any:
    return shard_list(rows, created_at=created_at, now=NOW, ttl_s=90.0)


def test_neighbors_in_the_same_state_are_one_run() -> None:
    found = shown(
        row(0, "done"), row(1, "closed"), row(2, "leased", finished=3), row(3, "open", finished=0), row(7, "done")
    )
    assert [(run.first, run.num_shards, run.state, run.num_finished) for run in found.pools["mistral"]] == [
        (0, 2, "done", 20),
        (2, 1, "leased", 3),
        (3, 1, "waiting", 0),
        (7, 1, "done", 10),
    ]


def test_a_lease_has_a_runner_and_expires() -> None:
    rows = [
        row(0, "leased", age=1),
        row(1, "leased", age=30),
        row(2, "leased", age=30, runner="r2"),
        row(3, "leased", age=90),
    ]
    runs = shown(*rows).pools["mistral"]
    assert [(run.num_shards, run.state, run.runner, run.age_s) for run in runs] == [
        (2, "leased", "r1", 1.0),
        (1, "leased", "r2", 30.0),
        (1, "expired", "r1", 90.0),
    ]


def test_lines_that_the_planner_decided_are_nobodys_shards() -> None:
    found = shown(row(0, "done", pool="_rejected"), row(0, "done", pool="_reused"), row(0, "done", pool="llama"))
    assert list(found.pools) == ["llama"]
    assert sum(found.throughput.finished) == 10


def test_the_throughput_adds_up_to_what_has_finished() -> None:
    found = shown(row(0, "done", age=600), row(1, "done", age=300), row(2, "leased", finished=4)).throughput
    assert (found.start, found.step_s, len(found.finished)) == (NOW - 600.0, 10.0, STEPS)
    assert (found.finished[0], found.finished[30], found.finished[-1]) == (10, 10, 4)
    assert sum(found.finished) == 24


def test_clocks_that_differ_lose_no_request() -> None:
    found = shown(row(0, "done", age=-50), row(1, "done", age=700), created_at=NOW)
    assert sum(found.throughput.finished) == 20
    assert shown(row(0, "leased", age=-5)).pools["mistral"][0].age_s == 0.0
