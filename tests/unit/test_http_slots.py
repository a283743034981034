"""The slots of an HTTP pool and their limit."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from batchfile.engine.http.slots import Limit, Slots
from tests.unit.virtual_loop import run_virtually


def test_requests_that_were_under_way_together_halve_the_limit_once() -> None:
    limit = Limit(32)
    for asked_at in (0.0, 0.5, 0.9):
        limit.lower(asked_at, now=1.0)
    assert limit.allowed == 16
    limit.lower(1.5, now=2.0)
    assert limit.allowed == 8


def test_a_round_of_good_answers_raises_the_limit_by_one() -> None:
    limit = Limit(32)
    for now in range(1, 4):
        limit.lower(float(now), now + 0.5)
    assert limit.allowed == 4
    for _ in range(5):
        limit.raise_()
    assert limit.allowed == 5
    for _ in range(1_000):
        limit.raise_()
    assert limit.allowed == 32


@given(st.integers(1, 64), st.lists(st.tuples(st.booleans(), st.floats(0, 3)), max_size=100))
def test_the_limit_stays_between_one_and_the_most(most: int, events: list[tuple[bool, float]]) -> None:
    limit, now = Limit(most), 0.0
    for is_good, pause in events:
        if is_good:
            limit.raise_()
        else:
            limit.lower(now, now + pause)
        now += pause
        assert 1 <= limit.allowed <= most


def test_the_lowest_order_is_next_and_nobody_while_it_is_shut() -> None:
    async def job() -> list[int]:
        slots, served = Slots(Limit(1)), list[int]()

        async def one(order: int) -> None:
            await slots.take(order)
            served.append(order)
            await asyncio.sleep(1)
            slots.give()

        slots.shut()
        tasks = [asyncio.create_task(one(order)) for order in (3, 1, 2)]
        await asyncio.sleep(1)
        assert served == []
        slots.open()
        await asyncio.gather(*tasks)
        return served

    assert run_virtually(job()) == [1, 2, 3]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans()), max_size=30), st.integers(1, 3))
def test_no_slot_is_lost_whoever_is_canceled_when(jobs: list[tuple[int, int, bool]], most: int) -> None:
    """Each with when it comes, when it is canceled (if it is), and whether it is."""

    async def job() -> None:
        slots, at_once = Slots(Limit(most)), [0]

        async def one(order: int, comes_at: int) -> None:
            await asyncio.sleep(comes_at)
            await slots.take(order)
            at_once[0] += 1
            assert at_once[0] <= most
            try:
                await asyncio.sleep(1)
            finally:
                at_once[0] -= 1
                slots.give()

        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(one(order, comes_at)) for order, (comes_at, _, _) in enumerate(jobs)]
        for task, (_, ends_at, is_canceled) in zip(tasks, jobs, strict=True):
            if is_canceled:
                loop.call_at(float(ends_at), task.cancel)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not [task for task in tasks if not task.cancelled() and task.exception()]
        await asyncio.gather(*(slots.take(100 + n) for n in range(most)))  # all of them are free again

    run_virtually(job())
