"""Turns between batches, by the time that their jobs took."""

from types import SimpleNamespace
from typing import Any, cast

from batchfile.runner.queues import FairQueue
from batchfile.types import Request
from tests.helpers.runner import Job, PendingRequest


def job(batch_id: str, number: int = 0) -> Job:
    item = SimpleNamespace(shard=SimpleNamespace(batch_id=batch_id), line=number, size=10)
    return Job(cast("PendingRequest", item), cast("Request", None))


def served(queue: FairQueue[Job], num: int, costs: dict[str, float]) -> list[str]:
    """The batches of the next `num` jobs, each of which takes what its batch's jobs take."""
    order: list[Any] = []
    for _ in range(num):
        found = queue.take()
        assert found is not None
        queue.charge(found, costs[found.batch_id])
        order.append(found.batch_id)
    return order


def test_a_batch_of_slow_jobs_gets_as_much_time_as_one_of_quick_jobs() -> None:
    queue = FairQueue[Job]()
    for batch_id in ("slow", "quick"):
        for number in range(1000):
            queue.add(job(batch_id, number))
    order = served(queue, 400, {"slow": 1.0, "quick": 0.01})
    assert 3 <= order.count("slow") <= 5


def test_jobs_that_cost_nothing_take_turns_and_those_of_a_batch_stay_in_order() -> None:
    queue = FairQueue[Job]()
    for number in range(3):
        queue.add(job("a", number))
    for number in range(3):
        queue.add(job("b", number))
    taken = []
    while (found := queue.take()) is not None:
        queue.charge(found, 0.0)
        taken.append((found.batch_id, found.item.line))
    assert taken == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]


def test_a_batch_that_comes_late_is_served_next_and_does_not_make_up_for_its_absence() -> None:
    queue = FairQueue[Job]()
    for number in range(100):
        queue.add(job("old", number))
    served(queue, 50, {"old": 1.0})
    for number in range(100):
        queue.add(job("new", number))
    order = served(queue, 20, {"old": 1.0, "new": 1.0})
    assert order[:2] in (["new", "old"], ["old", "new"], ["new", "new"])
    assert order.count("old") >= 9


def test_a_batch_cannot_skip_the_line_by_coming_back_each_time() -> None:
    queue = FairQueue[Job]()
    for number in range(1000):
        queue.add(job("quick", number))
    order = []
    for number in range(300):
        if not queue.num_of("slow"):
            queue.add(job("slow", number))
        order += served(queue, 1, {"slow": 1.0, "quick": 0.01})
    assert order.count("slow") <= 4


def test_it_counts_what_waits() -> None:
    queue = FairQueue[Job]()
    assert queue.take() is None
    queue.add(job("a"))
    queue.add(job("b"))
    assert (queue.num_of("a"), queue.num_of("c"), queue.size) == (1, 0, 20)
    queue.take()
    queue.take()
    assert (queue.num_of("a"), queue.size) == (0, 0)
