"""The echo engine: its answers, its time and its faults."""

import base64
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from batchfile.engine.base import Finished
from batchfile.errors import EngineDead, InvalidRequest, SettingsError
from batchfile.testing import EchoEngine, EchoFaults, EchoOptions, FaultyEchoEngine, ManualClock
from batchfile.types import Choice, Completion, Message, Raw, Request, Sampling, Tool, Tools, Usage


def request(text: str, custom_id: str = "r", max_tokens: int = 10, **sampling: object) -> Request:
    return Request(
        custom_id=custom_id,
        messages=(Message("system", "be kind"), Message("user", text)),
        sampling=Sampling(max_tokens=max_tokens, **sampling),  # type: ignore[arg-type]
    )


def run(engine: EchoEngine, *requests: Request) -> list[Finished]:
    for key, one in enumerate(requests):
        engine.add(key, engine.prepare(one))
    done: list[Finished] = []
    while batch := engine.step():
        done += batch
    return done


def test_it_answers_with_the_last_user_turn_and_counts_pieces_of_text():
    [done] = run(EchoEngine(), request("one two\nthree  four"))
    assert done.outcome == Completion(
        choices=(Choice("one two\nthree  four", "end_turn"),), usage=Usage(input_tokens=6, output_tokens=4)
    )


def test_max_tokens_cuts_the_answer():
    [done] = run(EchoEngine(), request("one two three", max_tokens=2))
    assert done.outcome == Completion(
        choices=(Choice("one two", "max_tokens"),), usage=Usage(input_tokens=5, output_tokens=2)
    )


def test_slots_are_given_first_come_first_served_and_time_is_latency_plus_tokens():
    clock = ManualClock(now=0.0)
    engine = EchoEngine(
        num_slots=2,
        seconds_per_token=1.0,
        latency_s=0.5,
        clock=clock,
        tokens=lambda one: int(one.messages[-1].content),
    )
    for key, length in enumerate((4, 2, 1, 3)):
        engine.add(key, engine.prepare(request(str(length))))
    seen = []
    while done := engine.step():
        seen += [(clock.monotonic(), finished.key) for finished in done]
    assert seen == [(2.5, 1), (4.0, 2), (4.5, 0), (7.5, 3)]


def test_a_step_is_full_while_all_slots_run():
    clock = ManualClock()
    engine = EchoEngine(num_slots=2, seconds_per_token=1.0, clock=clock, tokens=lambda _: 1)
    run(engine, *[request("x") for _ in range(5)])
    assert (engine.stats().num_steps, engine.stats().num_full_steps) == (3, 2)


def test_an_aborted_request_does_not_come_back():
    engine = EchoEngine(num_slots=1)
    for key in range(3):
        engine.add(key, engine.prepare(request("x")))
    engine.abort([0, 2, 99])
    assert [done.key for done in engine.step()] == [1]
    assert engine.step() == []


def test_poison_kills_the_engine_once_it_runs_and_for_good():
    engine = FaultyEchoEngine(num_slots=1, faults=EchoFaults(poison="POISON"))
    engine.add(0, engine.prepare(request("fine")))
    engine.add(1, engine.prepare(request("a POISON b")))
    assert [done.key for done in engine.step()] == [0]
    with pytest.raises(EngineDead):
        engine.step()
    with pytest.raises(EngineDead):
        engine.add(2, engine.prepare(request("fine")))


def test_a_marker_can_make_it_refuse_a_request():
    engine = FaultyEchoEngine(faults=EchoFaults(refuse="NO"))
    with pytest.raises(InvalidRequest, match="'NO'"):
        engine.prepare(request("a NO b"))


def test_the_kill_marker_kills_the_process_after_the_execution_is_noted(tmp_path: Path):
    program = """
from batchfile.engine.open import engine_factory
from batchfile.types import Message, Request, Sampling
engine = engine_factory("echo", model="echo")()
for key, text in enumerate(["fine", "a KILL b", "fine"]):
    one = Request(custom_id=f"r{key}", messages=(Message("user", text),), sampling=Sampling(max_tokens=5))
    engine.add(key, engine.prepare(one))
while True:
    engine.step()
"""
    path = tmp_path / "executions"
    env = {"BATCHFILE_ECHO_SLOTS": "2", "BATCHFILE_ECHO_KILL": "KILL", "BATCHFILE_ECHO_EXECUTIONS": str(path)}
    done = subprocess.run([sys.executable, "-c", program], env=env, timeout=1200, check=False)
    assert done.returncode == -9
    assert path.read_text().splitlines() == ["r0", "r1"]


def test_options_come_from_the_environment():
    options = EchoOptions.from_env({"BATCHFILE_ECHO_SLOTS": "7", "BATCHFILE_ECHO_LATENCY_S": "0.25"})
    assert options == EchoOptions(num_slots=7, latency_s=0.25)


@pytest.mark.parametrize("text", ["many", "0", "nan", "inf", "-1"])
def test_a_wrong_option_is_named(text: str):
    with pytest.raises(SettingsError, match="BATCHFILE_ECHO_SLOTS"):
        EchoOptions.from_env({"BATCHFILE_ECHO_SLOTS": text})


def test_a_request_with_a_schema_gets_the_answer_that_was_set_and_its_echo_the_first_times():
    engine = FaultyEchoEngine(guided='{"a": 1}', faults=EchoFaults(schema_mismatches=1))
    texts = []
    for _ in range(2):
        [done] = run(engine, request("one two", json_schema={}))
        assert isinstance(done.outcome, Completion)
        texts.append(done.outcome.choices[0].text)
    assert texts == ["one two", '{"a": 1}']
    [plain] = run(engine, request("one two"))
    assert isinstance(plain.outcome, Completion)
    assert plain.outcome.choices[0].text == "one two"


def test_the_answer_to_guided_requests_is_set_by_the_environment():
    env = {"BATCHFILE_ECHO_GUIDED": "{}", "BATCHFILE_ECHO_SCHEMA_MISMATCHES": "2"}
    assert (EchoOptions.from_env(env).guided, EchoFaults.from_env(env).schema_mismatches) == ("{}", 2)


TOOLS = Tools(offered=(Tool("look", None, {}), Tool("find", None, {})))


def test_what_was_not_set_is_not_served() -> None:
    engine = EchoEngine()
    for one in (replace(request("a"), tools=TOOLS), replace(request("a"), is_thinking=True)):
        with pytest.raises(InvalidRequest, match="This pool does not support"):
            engine.prepare(one)


def test_a_request_with_tools_is_answered_with_a_call_until_a_tool_has_answered() -> None:
    engine = EchoEngine(tool_input={"city": "Bern"}, thinking="hm")
    named = replace(request("a b"), tools=Tools(offered=TOOLS.offered, choice="named", name="find"), is_thinking=True)
    (choice,) = engine.prepare(named).completion.choices
    assert (choice.text, choice.stop_reason, choice.thinking) == ("", "tool_use", "hm")
    (call,) = choice.calls
    assert (call.name, call.input) == ("find", {"city": "Bern"})
    answered = (*named.messages, Message("assistant", "", (call,)), Message("tool", "fog", call_id=call.id))
    (choice,) = engine.prepare(replace(named, messages=answered, is_thinking=None)).completion.choices
    assert choice == Choice("a b", "end_turn")


def test_the_environment_sets_what_tools_are_called_with() -> None:
    assert EchoOptions.from_env({"BATCHFILE_ECHO_TOOL_INPUT": '{"a": 1}'}).tool_input == {"a": 1}
    with pytest.raises(SettingsError, match="must be a JSON object"):
        EchoOptions.from_env({"BATCHFILE_ECHO_TOOL_INPUT": "[]"})


def raw(kind: str, *inputs: object, **more: object) -> Request:
    given = Raw(kind=kind, inputs=inputs, **more)  # type: ignore[arg-type]
    return Request(custom_id="r", messages=(), raw=given, sampling=Sampling(max_tokens=2))


def test_a_raw_prompt_is_its_own_answer():
    [text, ids] = run(EchoEngine(), raw("completion", "one two three"), raw("completion", (7,)))
    assert text.outcome == Completion(
        choices=(Choice("one two", "max_tokens"),), usage=Usage(input_tokens=3, output_tokens=2), kind="completion"
    )
    assert ids.outcome.choices == (Choice("7", "end_turn"),)


def test_vectors_are_made_of_the_text_and_have_length_1_and_the_dimensions_that_were_asked_for():
    engine = EchoEngine(task="embed")
    [first, packed] = run(engine, raw("embedding", "a", "b", "a"), raw("embedding", "a", dimensions=8, is_base64=True))
    one, other, again = first.outcome.vectors
    assert one == again != other
    assert len(one) == 32
    assert sum(value * value for value in one) == pytest.approx(1)
    [text] = packed.outcome.vectors
    assert len(struct.unpack("<8f", base64.b64decode(text))) == 8
    assert first.outcome.usage == Usage(input_tokens=3)


def test_a_pool_does_what_its_model_is_loaded_for_and_refuses_the_rest():
    told = r"^/v1/embeddings is not served by the model echo, which serves /v1/chat/completions and /v1/completions: "
    with pytest.raises(InvalidRequest, match=told):
        EchoEngine().prepare(raw("embedding", "a"))
    for one in (request("x"), raw("completion", "x"), raw("classification", "x")):
        with pytest.raises(InvalidRequest, match="which serves /v1/embeddings, /v1/score, /v1/rerank and /v1/pooling"):
            EchoEngine(task="embed").prepare(one)
    with pytest.raises(InvalidRequest, match="use a pool or a run with task = 'embed', or another model"):
        EchoEngine(task="classify").prepare(raw("embedding", "x"))


def test_classes_are_made_of_the_text():
    [made] = run(EchoEngine(task="classify"), raw("classification", "a", "b", "a"))
    assert [sum(shares) for shares in made.outcome.vectors] == [1, 1, 1]
    assert made.outcome.vectors[0] == made.outcome.vectors[2] != made.outcome.vectors[1]
    assert set(made.outcome.labels) <= {"LABEL_0", "LABEL_1"}


def test_a_result_of_too_many_numbers_is_refused():
    with pytest.raises(InvalidRequest, match="put at most 500 inputs on a line"):
        EchoEngine(task="embed").prepare(raw("embedding", *["a"] * 501, dimensions=2000))
