"""What runners did, counted by the API from their heartbeats."""

from dataclasses import replace

from tests.helpers.ledger import HeartbeatRecord, RunnerTotals
from tests.helpers.service import PoolTotals

OLD = HeartbeatRecord(
    pool="p",
    runner_id="old",
    model="m",
    engine="echo",
    state="running",
    started_at=0.0,
    totals=RunnerTotals(succeeded=100, failed=7, input_tokens=900),
)
NEW = replace(OLD, runner_id="new", totals=RunnerTotals(succeeded=3, rejected=2, output_tokens=30, engine_deaths=1))


def values(totals: PoolTotals, *runners: HeartbeatRecord) -> dict[tuple[str, ...], float]:
    return {
        (sample.name.removeprefix("batchfile_pool_"), *sample.labels.values()): sample.value
        for family in totals.collect(runners)
        for sample in family.samples
        if sample.value
    }


def test_what_was_done_before_the_first_look_is_not_counted_and_a_new_runner_is_from_its_start() -> None:
    totals = PoolTotals()
    assert values(totals, OLD) == {}
    after = replace(OLD, totals=replace(OLD.totals, succeeded=110, leases_lost=1))
    assert values(totals, after, NEW) == {
        ("requests_total", "p", "m", "succeeded"): 13,
        ("requests_total", "p", "m", "rejected"): 2,
        ("tokens_total", "p", "m", "output"): 30,
        ("engine_deaths_total", "p", "m"): 1,
        ("leases_lost_total", "p", "m"): 1,
    }


def test_a_runner_that_is_gone_stays_counted_and_one_that_comes_back_is_not_counted_twice() -> None:
    totals = PoolTotals()
    values(totals)
    assert values(totals, NEW) == values(totals) == values(totals, NEW)


def test_models_of_one_pool_are_apart_and_each_has_all_outcomes_from_the_start() -> None:
    totals = PoolTotals()
    names = {
        (sample.name, *sample.labels.values())
        for family in totals.collect([OLD, replace(OLD, runner_id="other", model="n")])
        for sample in family.samples
    }
    for model in ("m", "n"):
        for outcome in ("succeeded", "failed", "rejected"):
            assert ("batchfile_pool_requests_total", "p", model, outcome) in names
