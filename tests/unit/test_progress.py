"""The meter over runs in virtual time: continuous batching with steps, as an engine does it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchfile.engine.base import EngineStats
from batchfile.local.progress import ACTIVE_S_MIN, Meter, Snapshot, cost_usd
from batchfile.types import Counts, Usage
from tests.helpers.runner import RunnerStats

LOOK_S = 0.25


@dataclass
class Run:
    """Requests of `lengths` output tokens on `slots`. A step takes `step_s`, and each prompt in it `prompt_s` more."""

    lengths: list[int]
    slots: int = 16
    prompt: int = 100
    step_s: float = 0.1
    prompt_s: float = 0.05
    loading_s: float = 5.0
    tells_steps: bool = True
    runner_stats: RunnerStats = field(default_factory=RunnerStats)

    def looks(self, before: Counts | None = None, usage: Usage | None = None) -> Iterator[tuple[float, Snapshot]]:
        """The time and the snapshot, every LOOK_S, until all requests have finished."""
        before = before or Counts()
        meter = Meter(len(self.lengths) + before.finished, before, usage or Usage(), 0.0)
        waiting, running = list(self.lengths), []
        now, look_at, prompts, tokens = self.loading_s, 0.0, 0, 0
        while look_at < now:
            yield look_at, meter.look(self.runner_stats, look_at)
            look_at += LOOK_S
        self.runner_stats.engine_ready_at = now
        while waiting or running:
            joining = waiting[: self.slots - len(running)]
            del waiting[: len(joining)]
            ends_at = now + self.step_s + self.prompt_s * len(joining)
            running += [[length, length] for length in joining]
            stats = EngineStats(
                prompt_tokens=prompts, output_tokens=tokens, num_running=len(running), num_waiting=len(waiting)
            )
            while look_at < ends_at:
                yield look_at, meter.look(self.runner_stats, look_at, 0.0, stats if self.tells_steps else EngineStats())
                look_at += LOOK_S
            now = ends_at
            prompts += self.prompt * len(joining)
            tokens += len(running)
            for one in running:
                one[1] -= 1
            for length, left in running:
                if left == 0:
                    self.runner_stats.succeeded += 1
                    self.runner_stats.input_tokens += self.prompt
                    self.runner_stats.output_tokens += length
            running = [one for one in running if one[1] > 0]


def lengths_of(kind: str, num: int, rng: Random) -> list[int]:
    kinds: dict[str, Callable[[], int]] = {
        "constant": lambda: 40,
        "uniform": lambda: rng.randint(1, 80),
        "exponential": lambda: 1 + int(rng.expovariate(1 / 40)),
    }
    return [kinds[kind]() for _ in range(num)]


@pytest.mark.slow
@given(
    kind=st.sampled_from(["constant", "uniform", "exponential"]),
    slots=st.sampled_from([1, 8, 64]),
    step_s=st.sampled_from([0.02, 0.1, 2.0]),
    tells_steps=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_between_two_looks_the_eta_moves_little(
    kind: str, slots: int, step_s: float, tells_steps: bool, seed: int
) -> None:
    run = Run(lengths_of(kind, 4 * slots + 20, Random(seed)), slots=slots, step_s=step_s, tells_steps=tells_steps)
    last: float | None = None
    for _, snap in run.looks():
        if snap.eta_s is not None and last is not None:
            assert abs(snap.eta_s - last) <= LOOK_S + max(1.0, 0.1 * last) + 1e-6, (last, snap)
        last = snap.eta_s


@pytest.mark.parametrize("kind", ["constant", "uniform", "exponential"])
def test_the_eta_is_right_within_a_third_once_a_third_is_done(kind: str) -> None:
    looks = list(Run(lengths_of(kind, 400, Random(1))).looks())
    ended_at = looks[-1][0]
    checked = 0
    for now, snap in looks:
        if snap.total / 3 <= snap.done <= snap.total * 3 / 4:  # the last ones leave slots empty
            assert snap.eta_s == pytest.approx(ended_at - now, rel=0.34)
            checked += 1
    assert checked > 20


def test_a_rate_is_never_zero_while_the_counts_grow_or_a_step_runs() -> None:
    """One slow machine: minutes for the first prompts, then half a minute a step."""
    has_begun = False
    for _, snap in Run([24] * 40, slots=32, step_s=30.0, prompt_s=4.0).looks():
        if snap.output_tokens:
            has_begun = True
            assert snap.output_rate > 0
            assert snap.input_rate + snap.output_rate > 0
        elif not snap.is_loading:
            assert snap.num_running == 32
            assert snap.quiet_s >= 0
    assert has_begun


def test_tokens_are_counted_from_the_first_step_on() -> None:
    for _, snap in Run([50] * 8, slots=8).looks():
        if snap.output_tokens:
            assert (snap.done, snap.input_tokens, snap.output_tokens % 8) == (0, 800, 0)
            return
    raise AssertionError("no token was counted before the end")


def test_an_engine_that_tells_nothing_is_known_by_what_has_finished() -> None:
    looks = [snap for _, snap in Run([50] * 64, slots=8, tells_steps=False).looks()]
    assert any(snap.output_rate > 0 for snap in looks)
    assert any(snap.eta_s for snap in looks)


def test_counts_and_the_share_only_grow() -> None:
    last: Snapshot | None = None
    for _, snap in Run(lengths_of("exponential", 200, Random(3))).looks():
        if last is not None:
            assert (snap.input_tokens, snap.output_tokens) >= (last.input_tokens, last.output_tokens)
            assert last.share is None or (snap.share is not None and last.share <= snap.share <= 1)
        last = snap


def test_loading_the_engine_is_no_slowness_and_the_eta_waits_for_something_to_go_by() -> None:
    for now, snap in Run([40] * 100, loading_s=60.0).looks():
        if now < 60:
            assert (snap.is_loading, snap.eta_s) == (True, None)
        if not snap.done or now < 60 + ACTIVE_S_MIN:
            assert snap.eta_s is None
        elif snap.eta_s is not None:
            assert snap.eta_s < 60
            return
    raise AssertionError("there was no ETA")


def test_what_was_done_before_counts_for_the_eta_at_once() -> None:
    before = Counts(succeeded=100)
    usage = Usage(input_tokens=10_000, output_tokens=4_000)
    first = next(snap for _, snap in Run([40] * 100).looks(before, usage) if snap.eta_s is not None)
    assert (first.done, first.total) == (100, 200)
    assert first.output_tokens > 4_000


def test_no_time_left_is_promised_while_more_run_than_have_finished() -> None:
    """Four stages at once, as in the demo: the short ones finish first and say nothing about the long ones."""
    run = Run([24] * 8 + [100, 120, 160] * 8, slots=32)
    promised = [seen for _, seen in run.looks() if seen.eta_s is not None]
    assert [seen.done for seen in promised if seen.done < seen.num_running] == []
    assert promised


def test_a_downtime_of_the_endpoint_is_no_slowness_of_it() -> None:
    meter = Meter(100, Counts(), Usage(), 0.0)
    runner_stats = RunnerStats(engine_ready_at=0.0)
    for second in range(1, 41):
        runner_stats.succeeded, runner_stats.output_tokens = second, 10 * second
        before = meter.look(runner_stats, float(second))
    for second in range(41, 141):
        assert meter.look(runner_stats, float(second), down_s=float(second - 40)).down_s
    runner_stats.succeeded, runner_stats.output_tokens = 41, 410
    after = meter.look(runner_stats, 141.0)
    assert before.output_rate == after.output_rate == 10.0
    assert before.eta_s == pytest.approx(60, rel=0.05)
    assert after.eta_s == pytest.approx(59, rel=0.05)


def test_what_a_fast_engine_did_in_its_first_moment_is_no_rate() -> None:
    meter = Meter(100, Counts(), Usage(), 0.0)
    runner_stats = RunnerStats(engine_ready_at=0.0, succeeded=1, input_tokens=80, output_tokens=30)
    first = meter.look(runner_stats, 0.001)
    assert (first.done, first.input_rate, first.output_rate) == (1, 0.0, 0.0)
    runner_stats.succeeded, runner_stats.output_tokens = 10, 300
    assert meter.look(runner_stats, 2.0).output_rate == 150.0


def test_while_all_that_is_left_waits_no_time_left_is_promised() -> None:
    meter = Meter(55, Counts(), Usage(), 0.0)
    runner_stats = RunnerStats(engine_ready_at=0.0)
    for second in range(1, 28):
        runner_stats.succeeded, runner_stats.output_tokens = 2 * second, 80 * second
        meter.look(runner_stats, float(second), 0.0, EngineStats(num_running=2))
    for second in range(28, 150):
        paused = meter.look(runner_stats, float(second), 0.0, EngineStats(num_waiting=1))
        assert (paused.done, paused.eta_s) == (54, None)
    assert meter.look(runner_stats, 150.0, 0.0, EngineStats(num_running=1)).eta_s is not None


@pytest.mark.parametrize(
    ("gpu_s", "gpu_hour", "cost"), [(1800.0, 2.5, 1.25), (1800.0, None, None), (0.0, 2.5, None), (3600.0, 0.0, 0.0)]
)
def test_a_cost_is_known_only_with_a_price_and_a_gpu(gpu_s: float, gpu_hour: float | None, cost: float | None) -> None:
    assert cost_usd(gpu_s, gpu_hour) == cost
