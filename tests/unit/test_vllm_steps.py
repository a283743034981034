"""Counting vLLM's steps where a version lacks what is looked at, or names requests otherwise. Imports no vllm."""

import queue
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from batchfile.engine.vllm.steps import UNDOCUMENTED, OutputWait, StepCounter, lacking


def outputs(*given: tuple[str, int], running: int | None = None) -> SimpleNamespace:
    return SimpleNamespace(
        outputs=[SimpleNamespace(request_id=name, new_token_ids=[7] * num) for name, num in given],
        scheduler_stats=None if running is None else SimpleNamespace(num_running_reqs=running),
    )


@pytest.mark.parametrize("name", ["1.0", "1.0-0a1b2c3d", "0_1.0", "1_1.0-0a1b2c3d"])
def test_a_prompt_counts_with_the_first_output_of_its_request(name: str) -> None:
    core = SimpleNamespace(get_output=lambda: outputs((name, 1), running=3))
    counter = StepCounter()
    counter.attach(core)
    counter.added("1.0", 50)
    counter.added("2.0", 9)
    for step in range(1, 4):
        core.get_output()
        assert (counter.prompt_tokens, counter.output_tokens, counter.num_running) == (50, step, 3)
    counter.finished(["1.0"], 3)
    assert (counter.prompt_tokens, counter.output_tokens) == (50, 3)


def test_without_statistics_the_requests_of_the_last_step_are_running() -> None:
    answers = [outputs(("1.0", 1), ("2.0", 1)), outputs(("2.0", 1))]
    core = SimpleNamespace(get_output=lambda: answers.pop(0))
    counter = StepCounter()
    counter.attach(core)
    running = []
    while answers:
        core.get_output()
        running.append(counter.num_running)
    assert running == [2, 1]


def test_the_use_of_the_kv_cache_is_what_the_scheduler_reports() -> None:
    reports = iter(
        [SimpleNamespace(num_running_reqs=1, kv_cache_usage=0.25), SimpleNamespace(num_running_reqs=2), None]
    )
    core = SimpleNamespace(get_output=lambda: SimpleNamespace(outputs=[], scheduler_stats=next(reports)))
    counter = StepCounter()
    counter.attach(core)
    assert counter.kv_use is None
    core.get_output()
    assert counter.kv_use == 0.25
    core.get_output()
    assert counter.kv_use is None, "this version does not report it"
    core.get_output()


def test_a_name_that_is_not_understood_counts_when_its_request_finishes() -> None:
    core = SimpleNamespace(get_output=lambda: outputs(("something-else", 2)))
    counter = StepCounter()
    counter.attach(core)
    counter.added("1.0", 50)
    core.get_output()
    assert (counter.prompt_tokens, counter.output_tokens) == (0, 2)
    counter.finished(["1.0"], 2)
    assert (counter.prompt_tokens, counter.output_tokens) == (50, 2)


@pytest.mark.parametrize("core", [SimpleNamespace(), SimpleNamespace(get_output=None)])
def test_a_client_that_shows_nothing_leaves_the_counts_of_what_has_finished(core: Any) -> None:
    counter = StepCounter()
    counter.attach(core)
    counter.added("1.0", 50)
    counter.added("2.0", 60)
    counter.forget(["2.0"])
    counter.finished(["1.0"], 12)
    assert (counter.prompt_tokens, counter.output_tokens, counter.num_running) == (50, 12, 0)


def test_a_wait_ends_with_the_next_output_and_without_one_at_its_limit() -> None:
    answers: queue.Queue[int] = queue.Queue()
    wait = OutputWait(SimpleNamespace(outputs_queue=answers))
    assert not wait.is_over(0.01)
    threading.Timer(0.05, answers.put, [1]).start()
    assert wait.is_over(60)
    assert wait.is_over(0), "what has come stays"
    assert answers.get_nowait() == 1


def test_what_cannot_be_waited_for_is_never_waited_for() -> None:
    assert OutputWait(SimpleNamespace()).is_over(60)
    assert OutputWait(SimpleNamespace(outputs_queue=object())).is_over(60)


def test_what_a_version_of_vllm_lacks_is_named_with_what_that_costs() -> None:
    assert lacking(SimpleNamespace(get_output=lambda: None, outputs_queue=queue.Queue())) == {}
    assert lacking(SimpleNamespace(get_output=lambda: None)) == {"outputs_queue": UNDOCUMENTED["outputs_queue"]}
    assert lacking(SimpleNamespace()) == UNDOCUMENTED


def test_outputs_of_another_shape_are_handed_on_and_requests_count_when_they_finish() -> None:
    core = SimpleNamespace(get_output=lambda: SimpleNamespace(outputs=[SimpleNamespace(tokens=[1, 2])]))
    counter = StepCounter()
    counter.attach(core)
    counter.added("1.0", 50)
    assert core.get_output().outputs[0].tokens == [1, 2]
    counter.finished(["1.0"], 2)
    assert (counter.prompt_tokens, counter.output_tokens) == (50, 2)
