"""How many runners a pool wants."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchfile.errors import SettingsError
from tests.helpers.fleet import Bounds, wanted

few = st.integers(0, 50)


@st.composite
def some_bounds(draw: st.DrawFn) -> Bounds:
    minimum = draw(few)
    return Bounds(minimum=minimum, maximum=minimum + draw(few))


@given(pending=few, leased=few, live=few, bounds=some_bounds())
def test_the_answer_is_within_the_bounds(pending: int, leased: int, live: int, bounds: Bounds) -> None:
    found = wanted(pending_shards=pending, leased_shards=leased, live_runners=live, bounds=bounds)
    assert bounds.minimum <= found <= bounds.maximum


@given(live=few, bounds=some_bounds())
def test_without_work_a_pool_wants_its_minimum(live: int, bounds: Bounds) -> None:
    assert wanted(pending_shards=0, leased_shards=0, live_runners=live, bounds=bounds) == bounds.minimum


@given(pending=few, leased=few)
def test_any_work_wants_a_runner_also_if_all_of_it_is_leased_by_the_dead(pending: int, leased: int) -> None:
    found = wanted(pending_shards=pending, leased_shards=leased, live_runners=0, bounds=Bounds(maximum=1))
    assert found == (1 if pending + leased else 0)


@given(pending=few, leased=few, live=few)
def test_runners_that_may_be_at_work_are_never_too_many(pending: int, leased: int, live: int) -> None:
    bounds = Bounds(maximum=1_000)
    assert wanted(pending_shards=pending, leased_shards=leased, live_runners=live, bounds=bounds) >= min(live, leased)


@given(pending=few, more=few, leased=few, live=few, bounds=some_bounds())
def test_more_work_never_wants_fewer(pending: int, more: int, leased: int, live: int, bounds: Bounds) -> None:
    less = wanted(pending_shards=pending, leased_shards=leased, live_runners=live, bounds=bounds)
    assert wanted(pending_shards=pending + more, leased_shards=leased, live_runners=live, bounds=bounds) >= less


def test_a_pool_grows_by_one_runner_for_each_few_shards() -> None:
    bounds = Bounds(maximum=10)
    found = [wanted(pending_shards=n, leased_shards=0, live_runners=0, bounds=bounds) for n in (0, 1, 4, 5, 8, 9, 999)]
    assert found == [0, 1, 1, 2, 2, 3, 10]


@pytest.mark.parametrize(("minimum", "maximum"), [(-1, 2), (3, 2)])
def test_bounds_that_are_no_range_are_refused(minimum: int, maximum: int) -> None:
    with pytest.raises(SettingsError, match="not a range"):
        Bounds(minimum=minimum, maximum=maximum)
