"""What every engine does, whatever generates behind it; tests/e2e/test_engine_vllm.py runs the same on real vLLM."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batchfile.engine.base import Engine, Finished
from batchfile.types import Completion, Message, Raw, Request, Role, Sampling
from tests.engines import prepare_now
from tests.helpers.engine import engine_factory


@pytest.fixture(scope="module", params=["echo", "http"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    if request.param == "http":
        path = Path(__file__).with_name("chat_server.py")
        spec = importlib.util.spec_from_file_location("chat_server", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        with module.running() as server:
            built = engine_factory("http", model="m", base_url=server.url)()
            yield built
            built.close()
        return
    built = engine_factory("echo", model="m")()
    yield built
    built.close()


pytestmark = pytest.mark.filterwarnings("ignore")


def request(*turns: tuple[Role, str], max_tokens: int = 8, **sampling: Any) -> Request:
    return Request(
        custom_id="r",
        messages=tuple(Message(role, content) for role, content in turns),
        sampling=Sampling(**({"max_tokens": max_tokens, "temperature": 0.0} | sampling)),
    )


def user(text: str, **sampling: Any) -> Request:
    return request(("user", text), **sampling)


def run(engine: Engine, requests: dict[int, Request]) -> dict[int, Finished]:
    for key, one in requests.items():
        engine.add(key, prepare_now(engine, one))
    done: dict[int, Finished] = {}
    while len(done) < len(requests):
        for finished in engine.step():
            assert finished.key not in done
            done[finished.key] = finished
    return done


def complete(engine: Engine, one: Request) -> Completion:
    outcome = run(engine, {7: one})[7].outcome
    assert isinstance(outcome, Completion), outcome
    return outcome


def test_it_says_what_it_is(engine: Engine) -> None:
    info = engine.info
    assert info.name
    assert info.model
    assert info.version
    assert info.max_in_flight > info.num_slots >= 1


def test_every_key_comes_back_exactly_once(engine: Engine) -> None:
    requests = {key: user(f"Say the number {key}", max_tokens=1 + key % 5) for key in range(60)}
    done = run(engine, requests)
    assert done.keys() == requests.keys()
    assert all(isinstance(finished.outcome, Completion) for finished in done.values())
    assert engine.step() == []


def test_tokens_are_counted_once_and_what_is_inside_runs_or_waits(engine: Engine) -> None:
    before = engine.stats()
    requests = {key: user(f"Say the number {key}", max_tokens=1 + key % 5) for key in range(60)}
    for key, one in requests.items():
        engine.add(key, prepare_now(engine, one))
    done: list[Finished] = []
    while len(done) < len(requests):
        done += engine.step()
        now = engine.stats()
        assert now.num_running + now.num_waiting == len(requests) - len(done)
        assert (now.prompt_tokens, now.output_tokens) >= (before.prompt_tokens, before.output_tokens)
        assert now.num_running <= engine.info.num_slots
    usages = [finished.outcome.usage for finished in done if isinstance(finished.outcome, Completion)]
    assert now.prompt_tokens - before.prompt_tokens == sum(usage.input_tokens for usage in usages)
    assert now.output_tokens - before.output_tokens == sum(usage.output_tokens for usage in usages)


def test_a_step_with_nothing_to_do_returns_at_once(engine: Engine) -> None:
    assert engine.step() == []


def test_requests_join_while_others_run(engine: Engine) -> None:
    engine.add(1, engine.prepare(user("one two three four", max_tokens=4)))
    done = {finished.key for finished in engine.step()}
    engine.add(2, engine.prepare(user("five six", max_tokens=2)))
    while len(done) < 2:
        done |= {finished.key for finished in engine.step()}
    assert done == {1, 2}


def test_an_aborted_request_is_not_returned_and_its_key_may_be_used_again(engine: Engine) -> None:
    for key in range(6):
        engine.add(key, engine.prepare(user(f"Count to {key}", max_tokens=30)))
    engine.abort([1, 3, 5, 99])
    engine.add(1, engine.prepare(user("once more", max_tokens=1)))
    done: list[int] = []
    while len(done) < 4:
        done += [finished.key for finished in engine.step()]
    assert sorted(done) == [0, 1, 2, 4]
    assert engine.step() == []


def test_the_same_request_gets_the_same_answer(engine: Engine) -> None:
    one = user("Write one sentence about rain.", max_tokens=12)
    assert complete(engine, one).choices == complete(engine, one).choices


def test_a_seed_makes_sampling_repeatable(engine: Engine) -> None:
    one = user("Invent a word.", max_tokens=12, temperature=1.0, seed=42)
    assert complete(engine, one).choices == complete(engine, one).choices


def test_max_tokens_ends_the_answer_and_says_so(engine: Engine) -> None:
    done = complete(engine, user("one two three four five six seven eight", max_tokens=3))
    assert done.choices[0].stop_reason == "max_tokens"
    assert done.usage.output_tokens == 3
    assert done.usage.input_tokens >= 8


def test_a_stop_sequence_ends_the_answer_and_is_left_out(engine: Engine) -> None:
    free = complete(engine, user("Repeat: apple, pear, plum, fig", max_tokens=24)).choices[0].text
    stop = free[len(free) // 2]
    stopped = complete(engine, user("Repeat: apple, pear, plum, fig", max_tokens=24, stop=(stop,))).choices[0]
    assert stopped.text == free[: free.index(stop)]
    assert stopped.stop_reason == "stop_sequence"


def test_several_choices_come_in_one_answer(engine: Engine) -> None:
    done = complete(engine, user("Say hello", max_tokens=4, num_choices=2, temperature=1.0, seed=1))
    assert len(done.choices) == 2
    assert 2 <= done.usage.output_tokens <= 8


def test_a_system_turn_is_taken(engine: Engine) -> None:
    bare = complete(engine, user("Hello"))
    done = complete(engine, request(("system", "You answer in French. " * 20), ("user", "Hello")))
    assert done.usage.input_tokens > bare.usage.input_tokens


def test_a_last_assistant_turn_is_continued(engine: Engine) -> None:
    done = complete(engine, request(("user", "Count to five."), ("assistant", "One, two, three,"), max_tokens=6))
    assert done.choices[0].text
    assert not done.choices[0].text.startswith("One, two, three,")


def test_all_sampling_settings_are_accepted(engine: Engine) -> None:
    settings = {"top_p": 0.9, "top_k": 20, "min_p": 0.05, "presence_penalty": 0.1}
    settings |= {"frequency_penalty": 0.1, "repetition_penalty": 1.1, "seed": 3, "temperature": 0.7}
    assert complete(engine, user("Say hello", **settings)).choices


def test_a_prompt_may_hold_any_text(engine: Engine) -> None:
    for text in ["", " ", "\x00\x07", "é日本🙂", "<|im_end|>", "{{ x }}{% raw %}", '"quotes"\\n']:
        assert isinstance(complete(engine, user(text, max_tokens=2)), Completion)


def test_prepare_may_run_in_many_threads(engine: Engine) -> None:
    from concurrent.futures import ThreadPoolExecutor

    requests = [request(("system", "Be kind. " * 60), ("user", f"Hello {number}")) for number in range(64)]
    with ThreadPoolExecutor(8) as pool:
        at_once = list(pool.map(engine.prepare, requests))
    one_by_one = [engine.prepare(one) for one in requests]
    # Parameters of vLLM's compare by identity in part; what counts is the work they describe.
    assert [(found.prefix, found.cost) for found in at_once] == [(one.prefix, one.cost) for one in one_by_one]
    ids = [getattr(found, "prompts", None) for found in at_once]
    assert ids == [getattr(found, "prompts", None) for found in one_by_one]
    assert len({found.prefix for found in at_once}) == 1


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def test_a_schema_guides_the_answer_where_the_engine_can(engine: Engine) -> None:
    done = complete(engine, user('{"name": "Ann", "age": 9}', max_tokens=60, json_schema=SCHEMA))
    found = json.loads(done.choices[0].text)
    assert found.keys() == {"name", "age"}
    assert isinstance(found["age"], int)


def raw(prompt: str | tuple[int, ...], **sampling: Any) -> Request:
    given = Raw(kind="completion", inputs=(prompt,))
    return Request(custom_id="r", messages=(), raw=given, sampling=Sampling(**({"temperature": 0.0} | sampling)))


def test_a_raw_prompt_is_gone_on_from(engine: Engine) -> None:
    done = complete(engine, raw("One two three four", max_tokens=2, num_choices=2, temperature=1.0))
    assert done.kind == "completion"
    assert len(done.choices) == 2
    assert {choice.stop_reason for choice in done.choices} <= {"max_tokens", "end_turn"}
    assert done.usage.output_tokens <= 4
    assert complete(engine, user("One two", max_tokens=2)).kind == "chat"


def test_a_raw_prompt_may_be_token_ids(engine: Engine) -> None:
    done = complete(engine, raw((1, 2, 3), max_tokens=2))
    assert done.usage.input_tokens == 3


def test_a_raw_prompt_ends_before_its_stop_sequence(engine: Engine) -> None:
    [plain] = complete(engine, raw("One two three four", max_tokens=12)).choices
    stop = plain.text.strip().split(" ")[-1]
    [cut] = complete(engine, raw("One two three four", max_tokens=12, stop=(stop,))).choices
    assert stop not in cut.text
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", stop)
