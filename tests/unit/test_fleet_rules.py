"""The fleet's pure rules: when a runner ends by itself, how fast it is."""

import pytest

from runners.heartbeat import RateMeter, Rates
from runners.worker import ShutdownRule
from tests.helpers.runner import RunnerStats


def test_a_runner_ends_after_it_was_idle_without_a_break() -> None:
    ending = ShutdownRule(is_drain=False, idle_exit_s=10)
    looks = [(True, 0), (True, 9), (False, 9.5), (True, 11), (True, 20.9)]
    assert not any(ending.is_due(is_idle=is_idle, is_drained=True, now=now) for is_idle, now in looks)
    assert ending.is_due(is_idle=True, is_drained=True, now=21)


def test_a_draining_runner_ends_with_the_queue_and_any_other_does_not() -> None:
    assert ShutdownRule(is_drain=True, idle_exit_s=None).is_due(is_idle=True, is_drained=True, now=0)
    assert not ShutdownRule(is_drain=True, idle_exit_s=None).is_due(is_idle=True, is_drained=False, now=0)
    assert not ShutdownRule(is_drain=False, idle_exit_s=None).is_due(is_idle=True, is_drained=True, now=1e9)


def test_rates_are_of_the_last_minute() -> None:
    meter, runner_stats = RateMeter(), RunnerStats()
    assert meter.look(runner_stats, 100) == Rates()
    (
        runner_stats.succeeded,
        runner_stats.failed,
        runner_stats.input_tokens,
        runner_stats.output_tokens,
        runner_stats.busy_s,
    ) = 15, 5, 2_000, 400, 10
    assert meter.look(runner_stats, 110) == Rates(requests=2, input_tokens=200, output_tokens=40)
    runner_stats.succeeded, runner_stats.busy_s = 75, 70
    assert meter.look(runner_stats, 170).requests == 1
    assert meter.look(runner_stats, 231) == Rates()


def test_time_without_work_slows_no_rate() -> None:
    meter, runner_stats = RateMeter(), RunnerStats()
    meter.look(runner_stats, 0)
    runner_stats.succeeded, runner_stats.busy_s = 20, 2
    assert [meter.look(runner_stats, now).requests for now in (3, 30, 60)] == [10, 10, 10]
    assert meter.look(runner_stats, 64) == Rates()


@pytest.mark.parametrize(
    ("num", "busy_s", "is_measured"),
    [
        (1, 0.0001, False),
        (1, 40, False),
        (9, 5, False),
        (999, 0.2, False),
        (10, 1, True),
        (3, 30, True),
        (2, 30, False),
    ],
)
def test_a_rate_is_of_several_requests_and_of_some_time(num: int, busy_s: float, is_measured: bool) -> None:
    meter, runner_stats = RateMeter(), RunnerStats()
    meter.look(runner_stats, 0)
    runner_stats.succeeded, runner_stats.busy_s = num, busy_s
    assert (meter.look(runner_stats, 50).requests > 0) == is_measured


def test_work_of_which_nothing_finishes_has_no_rate() -> None:
    meter, runner_stats = RateMeter(), RunnerStats()
    meter.look(runner_stats, 0)
    runner_stats.busy_s = 50
    assert meter.look(runner_stats, 50) == Rates()
