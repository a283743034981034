"""The order in which prefetched requests go to the engine."""

from types import SimpleNamespace

from batchfile.engine.base import Prepared
from batchfile.runner.queues import ReadyQueue
from tests.helpers.runner import PendingRequest


def item(key: int, *, cost: int = 1, prefix: int = 0, shard: object = None) -> PendingRequest:
    return PendingRequest(
        key=key,
        shard=shard,  # type: ignore[arg-type]
        line=key,
        custom_id=str(key),
        prepared=Prepared(prefix=prefix, cost=cost),
        size=10,
    )


def keys(items: list[PendingRequest]) -> list[int]:
    return [it.key for it in items]


def test_shared_prefixes_sit_together_and_the_longest_of_each_goes_first() -> None:
    ready_queue = ReadyQueue()
    ready_queue.push([item(1, prefix=7, cost=5), item(2, prefix=3, cost=1), item(3, prefix=7, cost=9)])
    assert keys(ready_queue.pop(9, 0)) == [2, 3, 1]


def test_an_older_prefetch_goes_before_a_newer_one() -> None:
    ready_queue = ReadyQueue()
    ready_queue.push([item(1, cost=1)])
    ready_queue.push([item(2, cost=100)], new_generation=True)
    assert keys(ready_queue.pop(9, 0)) == [1, 2]


def test_once_the_input_has_ended_the_longest_goes_first_whatever_its_prefix() -> None:
    ready_queue = ReadyQueue()
    ready_queue.push([item(1, prefix=1, cost=5), item(2, prefix=2, cost=9)])
    ready_queue.push([item(3, prefix=3, cost=7)], new_generation=True)
    ready_queue.set_ended(True)
    assert keys(ready_queue.pop(9, 0)) == [2, 3, 1]


def test_a_short_request_does_not_wait_for_longer_ones_that_come_after_each_end() -> None:
    ready_queue = ReadyQueue()
    ready_queue.push([item(0, cost=1), item(1, cost=5)])
    started: list[int] = []
    for key in range(2, 10):
        ready_queue.set_ended(True)
        started += keys(ready_queue.pop(1, 0))
        ready_queue.set_ended(False)
        ready_queue.push([item(key, cost=5)], new_generation=True)
    assert started == [1, 0, *range(2, 8)]


def test_equal_requests_keep_the_order_of_the_input() -> None:
    ready_queue = ReadyQueue()
    ready_queue.push([item(2), item(1), item(3)])
    assert keys(ready_queue.pop(2, 0)) == [1, 2]
    assert keys(ready_queue.pop(2, 2)) == [3]


def test_a_group_that_runs_alone_waits_for_an_empty_engine_and_nothing_joins_it() -> None:
    ready_queue = ReadyQueue()
    ready_queue.push([item(1)])
    ready_queue.push_alone([item(2), item(3)])
    assert ready_queue.pop(9, 4) == []
    assert keys(ready_queue.pop(1, 0)) == [2, 3]
    assert ready_queue.is_alone_running
    assert ready_queue.pop(9, 1) == []
    assert keys(ready_queue.pop(9, 0)) == [1]
    assert not ready_queue.is_alone_running


def test_dropped_shards_leave_no_request_and_no_bytes_behind() -> None:
    lost, kept = SimpleNamespace(), SimpleNamespace()
    ready_queue = ReadyQueue()
    ready_queue.push([item(1, shard=lost), item(2, shard=kept)])
    ready_queue.push_alone([item(3, shard=lost)])
    assert ready_queue.size_bytes == 30
    ready_queue.drop(lambda it: it.shard is lost)
    assert ready_queue.size_bytes == 10
    assert keys(ready_queue.pop(9, 0)) == [2]
    assert (len(ready_queue), ready_queue.size_bytes) == (0, 0)
