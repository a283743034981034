"""Fixed schedules, the same every time; in the long form, ones that nobody has seen before; and some that once broke
a promise.
"""

import random

import pytest

from tests.sim.simulation import SceneKind, run

pytestmark = pytest.mark.usefixtures("simulated")

# The same in every run, so that no landing depends on a draw: `just test-all` and `just sim` draw.
FIXED = 10**9
BLOCKS, BLOCK = 4, 75
FRESH_BLOCKS, FRESH_BLOCK = 80, 250
REPLAYED = 8  # a short one with many faults
FLOODS = 20  # one of so many is a flood, as in the schedules that draw their kind

# Each broke a promise when it was found. What a seed means changes with the code and the scene, so the bugs themselves
# are kept in test_regressions.py and among the mutants.
ONCE_BROKEN = (48, 684, 951, 957, 1583, 2500, 2711, 2814, 2863, 3028, 3189, 40052824)


def check(seeds: range) -> None:
    for seed in seeds:
        kind: SceneKind = "flood" if seed % FLOODS == 0 else "calls"
        outcome = run(seed, kind=kind)
        assert outcome.error is None, f"{outcome.error!r}; seed {seed}, kind {kind}"


@pytest.mark.parametrize("block", range(BLOCKS))
def test_whatever_goes_wrong_every_promise_holds(block: int) -> None:
    """Of calls, with ill objects, and floods; those with dropped files and webhooks are in test_dropped.py."""
    check(range(FIXED + block * BLOCK, FIXED + (block + 1) * BLOCK))


@pytest.mark.long
@pytest.mark.parametrize("block", range(FRESH_BLOCKS))
def test_in_schedules_that_nobody_has_seen_every_promise_holds(block: int) -> None:
    """Of calls and floods (docs/reliability.md says when dropped files join)."""
    first = random.SystemRandom().randrange(10**12)
    check(range(first, first + FRESH_BLOCK))


def test_schedules_that_once_broke_a_promise_do_not() -> None:
    for seed in ONCE_BROKEN:
        outcome = run(seed)
        assert outcome.error is None, f"{outcome.error!r}; see `just sim {seed} --trace`"


def test_a_seed_replays_exactly() -> None:
    first, second = (run(REPLAYED, is_traced=True) for _ in range(2))
    assert first.trace == second.trace
    again = run(REPLAYED, given=first.struck)
    assert again.trace == []
    assert (again.num_calls, again.struck) == (first.num_calls, first.struck)
    assert len(first.struck) > 20
