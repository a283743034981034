"""Which request kills the engine."""

from hypothesis import given
from hypothesis import strategies as st

from batchfile.engine.base import Prepared
from batchfile.runner.engine_host import judge
from tests.helpers.runner import PendingRequest


def items(num: int) -> list[PendingRequest]:
    prepared = Prepared()
    return [
        PendingRequest(key=key, shard=None, line=key, custom_id=str(key), prepared=prepared, size=1)  # type: ignore[arg-type]
        for key in range(num)
    ]


def test_the_first_two_deaths_make_no_suspects() -> None:
    flight = items(3)
    for _ in range(2):
        verdicts = judge(flight, was_alone=False)
        assert verdicts.again == flight
        assert not verdicts.alone


def test_the_third_death_in_common_makes_suspects_of_exactly_those() -> None:
    flight = items(3)
    for _ in range(2):
        judge(flight[:2], was_alone=False)
    verdicts = judge(flight, was_alone=False)
    assert verdicts.again == [flight[2]]
    assert verdicts.alone == [flight[:2]]


@given(num=st.integers(1, 300), data=st.data())
def test_the_poison_is_found_by_halving_and_nobody_else_is_guilty(num: int, data: st.DataObject) -> None:
    flight = items(num)
    killer = flight[data.draw(st.integers(0, num - 1))]
    queue, found, deaths = [flight], list[PendingRequest](), 0
    while queue:
        group = queue.pop(0)
        if killer in group:
            deaths += 1
            verdicts = judge(group, was_alone=True)
            found += verdicts.poison
            queue += [half for half in verdicts.alone if half]
    assert found == [killer]
    assert deaths <= num.bit_length() + 1
