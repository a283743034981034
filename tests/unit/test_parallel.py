"""Several calls at once, their outcomes in order."""

import threading
from collections.abc import Iterator

import pytest

from batchfile import Ledger
from batchfile.ledger.parallel import AHEAD, in_order
from batchfile.testing import MemoryStore

WAIT_S = 1200.0  # only against a hang: no test depends on a machine's speed


def ledger(num_in_flight: int) -> Ledger:
    return Ledger(store=MemoryStore(), num_in_flight=num_in_flight)


def test_outcomes_come_in_the_order_of_the_items_whichever_is_first() -> None:
    is_last_done = threading.Event()

    def do(item: int) -> int:
        if item == 0:
            assert is_last_done.wait(WAIT_S), "the first waits for the third: all three are under way at once"
        if item == 2:
            is_last_done.set()
        return item * 10

    assert list(in_order(ledger(3), do, range(9))) == [item * 10 for item in range(9)]


def test_no_more_are_under_way_than_may_be() -> None:
    lock, num, most = threading.Lock(), 0, 0

    def do(item: int) -> int:
        nonlocal num, most
        with lock:
            num += 1
            most = max(most, num)
        threading.Event().wait(0.001)
        with lock:
            num -= 1
        return item

    assert list(in_order(ledger(4), do, range(100))) == list(range(100))
    assert most <= 4


def test_items_are_drawn_only_so_far_ahead() -> None:
    drawn: list[int] = []

    def source() -> Iterator[int]:
        for item in range(100):
            drawn.append(item)
            yield item

    outcomes = in_order(ledger(2), str, source())
    assert next(outcomes) == "0"
    assert len(drawn) <= 2 * AHEAD + 1


def test_their_size_together_is_bounded_unless_one_alone_is_larger() -> None:
    lock, held, most = threading.Lock(), 0, 0

    def do(item: int) -> int:
        nonlocal held, most
        with lock:
            held += item
            most = max(most, held)
        return item

    for item in in_order(ledger(8), do, [3, 4, 50, 2, 2, 2, 2, 9, 9], size_of=lambda item: item, size_max=10):
        with lock:
            held -= item
    assert most <= 50
    held = most = 0
    for item in in_order(ledger(8), do, [4] * 20, size_of=lambda item: item, size_max=10):
        with lock:
            held -= item
    assert most <= 12  # two under way, and the one that is taken is counted until the next is asked for


@pytest.mark.parametrize("num_in_flight", [1, 4])
def test_an_error_is_raised_in_the_place_of_its_outcome(num_in_flight: int) -> None:
    def do(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    outcomes = in_order(ledger(num_in_flight), do, range(10))
    assert [next(outcomes) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(outcomes)


def test_who_leaves_early_waits_for_no_call() -> None:
    is_let_go = threading.Event()

    def do(item: int) -> int:
        if item:
            is_let_go.wait(WAIT_S)
        return item

    outcomes = in_order(ledger(4), do, range(100))
    assert next(outcomes) == 0
    outcomes.close()  # type: ignore[attr-defined]
    is_let_go.set()


def test_one_at_a_time_is_on_the_caller_s_thread() -> None:
    here = threading.get_ident()
    assert all(ident == here for ident in in_order(ledger(1), lambda _: threading.get_ident(), range(3)))
