"""A call of the engine that does not return: by counted ticks, not by a clock."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from batchfile import Ledger, RunnerOptions
from batchfile.engine.vllm.steps import COLD as COLD_ENGINE
from batchfile.engine.vllm.steps import Stall
from batchfile.ledger.base import Limits
from batchfile.runner.watchdog import COLD, COMMIT_S_MAX, Watchdog
from batchfile.testing import ManualClock, MemoryStore
from tests.helpers.runner import PendingRequest, SharedState


class World:
    """A runner's state in which one shard has a line that is not committed, unless `is_committed`."""

    def __init__(self, stall_s: float = 10.0) -> None:
        ledger = Ledger(store=MemoryStore(ManualClock()), limits=Limits(engine_stall_s=stall_s))
        self.state = SharedState(ledger, RunnerOptions(runner_id="r", pool="p"))
        self.calls = self.state.calls["loop"]
        self.calls.is_warm = True
        held = SimpleNamespace(name="p/0")
        self.shard: Any = cast("Any", SimpleNamespace(batch_id="b", held=held, accused=None, finished=[]))
        self.state.shards.append(self.shard)
        self.stuck: list[str] = []
        self._dog = Watchdog(self.state, tick_s=1.0)

    def ticks(self, num: int) -> None:
        for _ in range(num):
            reason = self._dog.tick()
            if reason is not None:
                self.stuck.append(reason)


@pytest.mark.parametrize("name", ["add", "step"])
def test_a_call_that_does_not_return_ends_the_process_after_a_commit(name: str) -> None:
    world = World()
    world.calls.enter(name)
    world.ticks(10)
    assert (world.state.is_urgent, world.stuck) == (False, [])
    world.ticks(1)
    assert (world.state.is_urgent, world.state.commit_due.is_set(), world.stuck) == (True, True, [])
    world.ticks(1)
    assert world.stuck == [f"the engine's {name} has not returned for 10 s and cannot be interrupted"]


def test_a_call_about_one_request_alone_names_it() -> None:
    world = World()
    calls = world.state.calls["preparer"]
    calls.enter("prepare", cast("PendingRequest", SimpleNamespace(shard=world.shard, line=7, custom_id="r7")))
    world.ticks(10)
    assert not world.state.is_urgent
    world.ticks(1)
    assert (world.shard.accused, world.state.is_urgent, world.stuck) == (7, True, [])
    world.shard.accused = None  # it was written down
    world.ticks(1)
    assert len(world.stuck) == 1


def test_many_calls_are_not_one_long_call() -> None:
    world = World()
    for _ in range(100):
        world.calls.enter("step")
        world.ticks(9)
    world.calls.leave()
    world.ticks(100)
    assert world.stuck == []


def test_a_commit_is_waited_for_but_not_for_ever() -> None:
    world = World()
    world.shard.finished = ["a line"]
    world.calls.enter("step")
    world.ticks(10 + int(COMMIT_S_MAX))
    assert (world.state.is_urgent, world.stuck) == (True, [])
    world.ticks(1)
    assert len(world.stuck) == 1


def test_a_call_that_returns_during_the_commit_is_forgiven() -> None:
    world = World()
    world.shard.finished = ["a line"]
    world.calls.enter("step")
    world.ticks(12)
    world.calls.leave()
    world.ticks(100)
    assert world.stuck == []


def test_an_engine_that_has_answered_nothing_yet_gets_longer() -> None:
    world = World()
    world.calls.is_warm = False
    world.calls.enter("step")
    world.ticks(10 * COLD)
    assert not world.state.is_urgent
    world.ticks(2)
    assert len(world.stuck) == 1


def look(stall: Stall, now: float, *, moves: int, has_stepped: bool = False) -> bool:
    return stall.is_over(now, (0, moves), has_stepped=has_stepped)


def test_an_engine_that_makes_no_token_for_the_bound_has_stalled() -> None:
    stall = Stall(10.0)
    stall.is_warm = True
    assert not any(look(stall, now, moves=now // 9) for now in range(50)), "a token every nine seconds"
    assert [look(stall, now, moves=5) for now in range(50, 56)] == [False] * 5 + [True]


def test_steps_that_run_something_are_progress_and_steps_that_run_nothing_are_not() -> None:
    stall = Stall(10.0)
    stall.is_warm = True
    assert not any(look(stall, now, moves=1, has_stepped=True) for now in range(1000)), "a long prompt"
    assert any(look(stall, now, moves=1) for now in range(1000, 1020))


def test_time_in_which_the_process_was_stopped_does_not_count() -> None:
    stall = Stall(10.0)
    stall.is_warm = True
    assert not any(look(stall, now, moves=1) for now in (0, 1, 2, 5000, 5001, 9000))


def test_a_cold_engine_gets_longer_and_an_empty_one_begins_anew() -> None:
    stall = Stall(10.0)
    assert not any(look(stall, now, moves=0) for now in range(10 * COLD_ENGINE))
    stall.reset()
    assert not any(look(stall, now, moves=0) for now in range(100, 100 + 10 * COLD_ENGINE))
    assert look(stall, 1000.0, moves=0)
