"""Every schedule with one deviation from the plain one, and some of those with two; all of them by hand."""

import pytest

from tests.sim.exhaustive import schedules

PAIRS = 600  # of the schedules with two deviations, each N-th


@pytest.mark.usefixtures("simulated")
@pytest.mark.parametrize("offset", [0, *(pytest.param(n, marks=pytest.mark.long) for n in range(150, PAIRS, 150))])
@pytest.mark.parametrize("has_cancel", [True, False])
def test_every_single_deviation_and_some_pairs_hold(has_cancel: bool, offset: int) -> None:
    assert sum(1 for _ in schedules(has_cancel=has_cancel, share=PAIRS, offset=offset)) > 400
