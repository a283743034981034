"""The HTTP engine against a server that misbehaves as told."""

import json
import random
from typing import Any

import pytest
from msgspec.structs import replace

from batchfile.errors import EngineDead, SettingsError
from batchfile.types import (
    Choice,
    Completion,
    Defaults,
    Failure,
    Message,
    Request,
    Sampling,
    Tool,
    ToolCall,
    Tools,
    Usage,
)
from tests.contract.engine_http_kit import chat_server, engine, options, raw_request, request, run, server
from tests.helpers.endpoint import UNFORESEEN, HttpEngine, api_root, dispatch
from tests.helpers.endpoint import connection as http_connection
from tests.helpers.lines import decode_result, encode_result, parse_request

__all__ = ["engine", "server"]


def test_it_sends_the_models_name_the_key_and_only_what_was_asked(server: Any) -> None:
    engine = HttpEngine(options(server.url + "/v1/", api_key="secret"))
    [outcome] = run(engine, request(temperature=0.5, top_k=3, stop=("x",)))
    engine.close()
    assert isinstance(outcome, Completion)
    [seen] = server.seen
    assert seen["path"] == "/v1/chat/completions"
    assert seen["headers"]["Authorization"] == "Bearer secret"
    assert seen["body"] == {
        "model": "served",
        "messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello there"}],
        "temperature": 0.5,
        "max_tokens": 8,
        "top_k": 3,
        "stop": ["x"],
    }


def test_what_only_an_endpoint_understands_is_sent_as_the_request_has_it(server: Any, engine: HttpEngine) -> None:
    form = {"name": "lead", "strict": False, "schema": {"type": "object"}}
    body = {
        "messages": [
            {"role": "user", "name": "ann", "content": "a"},
            {"role": "user", "name": "bob", "content": "b"},
        ],
        "max_completion_tokens": 8,
        "ignore_eos": True,
        "response_format": {"type": "json_schema", "json_schema": form},
        "tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}, "strict": True}}],
    }
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    run(engine, parse_request(json.dumps(line).encode(), Defaults()))
    seen = server.seen[0]["body"]
    assert {key: seen[key] for key in body} == {
        **body,
        "messages": [{"role": "user", "content": text, "name": name} for text, name in (("a", "ann"), ("b", "bob"))],
    }
    assert "max_tokens" not in seen


TOOLS = Tools(offered=(Tool("look", "Look.", {"type": "object"}), Tool("find", None, {"type": "object"})))


def calling(*calls: tuple[str, str], **message: Any) -> dict[str, Any]:
    """A response that calls tools, with ids of the endpoint's own."""
    asked = [
        {
            "id": f"chatcmpl-tool-{random.random()}",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        for name, arguments in calls
    ]
    reason = "tool_calls" if asked else "stop"
    choice = {"message": {"content": None, "tool_calls": asked} | message, "finish_reason": reason}
    return {"status": 200, "text": json.dumps({"choices": [choice]})}


def test_tools_and_the_calls_of_a_conversation_are_passed_through(server: Any, engine: HttpEngine) -> None:
    turns = (
        Message("user", "Where?"),
        Message("assistant", "", (ToolCall("t1", "look", {"city": "Bern"}),)),
        Message("tool", "fog", call_id="t1"),
    )
    named = Tools(offered=TOOLS.offered, choice="named", name="find", is_parallel=False)
    run(engine, Request(custom_id="r", messages=turns, sampling=Sampling(max_tokens=8), tools=named))
    body = server.seen[0]["body"]
    assert body["messages"][1:] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "t1", "type": "function", "function": {"name": "look", "arguments": '{"city": "Bern"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "fog"},
    ]
    assert [tool["function"]["name"] for tool in body["tools"]] == ["look", "find"]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "find"}}
    assert body["parallel_tool_calls"] is False


def test_calls_have_the_same_ids_each_time_whatever_the_endpoint_names_them(server: Any, engine: HttpEngine) -> None:
    one = replace(request(), tools=TOOLS)
    calls = (("look", '{"city": "Bern"}'), ("find", ""))
    server.script.extend(calling(*calls) for _ in range(3))
    first, second = run(engine, one)[0], run(engine, one)[0]
    assert isinstance(first, Completion)
    assert first == second
    (choice,) = first.choices
    assert (choice.text, choice.stop_reason) == ("", "tool_use")
    assert [(call.name, call.input) for call in choice.calls] == [("look", {"city": "Bern"}), ("find", {})]
    other = run(engine, replace(one, messages=(Message("user", "else"),)))[0]
    assert isinstance(other, Completion)
    ids = {call.id for call in (*choice.calls, *other.choices[0].calls)}
    assert len(ids) == 4


def test_calls_that_no_one_could_answer_spend_an_attempt(server: Any, engine: HttpEngine) -> None:
    server.script.extend([calling(("look", "{")), calling(("look", "[]")), calling(("look", "{}"))])
    [outcome] = run(engine, replace(request(), tools=TOOLS))
    assert isinstance(outcome, Completion)
    assert [call.input for call in outcome.choices[0].calls] == [{}]


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "told",
    [
        {"status": 200, "text": DEEP},
        {"status": 200, "text": '{"choices": [{"message": {"content": "x", "extra": ' + DEEP},
        calling(("look", DEEP)),
        calling(("look", '{"a":' * 300 + "1" + "}" * 300)),
        {"status": 500, "text": DEEP},
    ],
)
def test_an_answer_that_is_nested_too_deeply_spends_an_attempt(
    server: Any, engine: HttpEngine, told: dict[str, Any]
) -> None:
    server.script.extend([told, calling(("look", "{}"))])
    [outcome] = run(engine, replace(request(), tools=TOOLS))
    assert isinstance(outcome, Completion)
    assert len(server.seen) == 2


def test_a_refusal_that_is_nested_too_deeply_is_a_refusal(server: Any, engine: HttpEngine) -> None:
    server.script.append({"status": 400, "text": DEEP})
    [outcome] = run(engine, request())
    assert isinstance(outcome, Failure)
    assert outcome.type == "invalid_request_error"


def test_whatever_happens_to_a_request_it_has_an_outcome_and_the_others_run(
    server: Any, engine: HttpEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, faults = dispatch.read_answer, iter([True])

    def broken(*args: Any, **more: Any) -> Any:
        if next(faults, False):
            raise LookupError("nobody foresaw this")
        return read(*args, **more)

    monkeypatch.setattr(dispatch, "read_answer", broken)
    outcomes = run(engine, *[request() for _ in range(3)])
    (failure,) = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    assert (failure.type, failure.message) == ("model_error", UNFORESEEN)


@pytest.mark.parametrize(
    ("content", "text"),
    [("", ""), ("hi", "hi"), ([], ""), ([{"type": "text", "text": "h"}, {"type": "text", "text": "i"}], "hi")],
)
def test_content_in_parts_is_their_text(server: Any, engine: HttpEngine, content: Any, text: str) -> None:
    server.script.append(calling(content=content, tool_calls=None))
    [outcome] = run(engine, request())
    assert isinstance(outcome, Completion)
    assert outcome.choices == (Choice(text, "end_turn"),)


@pytest.mark.parametrize("content", [{"a": 1}, 7, ["hi"], [{"type": "image_url"}], [{"text": 7}], [None]])
def test_content_that_is_no_text_spends_an_attempt(server: Any, engine: HttpEngine, content: Any) -> None:
    server.script.extend(calling(content=content, tool_calls=None) for _ in range(3))
    [outcome] = run(engine, request())
    assert isinstance(outcome, Failure)
    assert "is not a chat completion" in outcome.message


@pytest.mark.parametrize("count", [-3, 2**70, 1e308, None, "many", [1]])
def test_a_usage_that_is_none_is_unknown(server: Any, engine: HttpEngine, count: Any) -> None:
    usage = {"prompt_tokens": count, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": count}}
    choice = {"message": {"content": "hi"}, "finish_reason": "stop"}
    server.script.append({"status": 200, "text": json.dumps({"choices": [choice], "usage": usage})})
    [outcome] = run(engine, request())
    assert isinstance(outcome, Completion)
    assert outcome.usage == Usage(unknown=1)


def test_whatever_an_endpoint_answers_has_a_result_line_that_can_be_read(server: Any, engine: HttpEngine) -> None:
    odd = json.dumps({"\ud800": "\ud800", "n": 2**70})
    server.script.append(calling(("look", odd), content=[{"text": "\ud800"}]))
    [outcome] = run(engine, replace(request(), tools=TOOLS))
    decode_result(encode_result("r", outcome, "m"))
    server.script.append({"status": 200, "text": json.dumps({"data": [{"index": 0, "embedding": "\ud800"}]})})
    [outcome] = run(engine, raw_request("embedding", "a"))
    decode_result(encode_result("r", outcome, "m"))


@pytest.mark.parametrize(("is_asked", "thinking"), [(True, "hm"), (None, None)])
def test_thinking_is_kept_where_it_was_asked_for(
    server: Any, engine: HttpEngine, is_asked: bool | None, thinking: str | None
) -> None:
    server.script.append(calling(content="yes", reasoning_content="hm"))
    [outcome] = run(engine, replace(request(), is_thinking=is_asked))
    assert isinstance(outcome, Completion)
    assert outcome.choices == (Choice("yes", "end_turn", thinking=thinking),)


def test_usage_is_the_endpoints_own(engine: HttpEngine) -> None:
    [outcome] = run(engine, request())
    assert isinstance(outcome, Completion)
    assert (outcome.usage.input_tokens, outcome.usage.output_tokens, outcome.usage.cached_tokens) == (4, 2, 1)


def test_a_max_tokens_that_nobody_asked_for_is_left_out_where_it_does_not_fit(server: Any, engine: HttpEngine) -> None:
    server.script.append({"status": 400, "text": '{"error": {"message": "max_tokens is too large: 2048"}}'})
    [outcome] = run(engine, request(max_tokens=2048, is_given=False))
    assert isinstance(outcome, Completion)
    assert ["max_tokens" in seen["body"] for seen in server.seen] == [True, False]


def test_a_max_tokens_that_nobody_asked_for_is_sent_under_the_name_that_the_endpoint_takes(
    server: Any, engine: HttpEngine
) -> None:
    told = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    server.script.append({"status": 400, "text": json.dumps({"error": {"message": told}})})
    [outcome] = run(engine, request(max_tokens=2048, is_given=False))
    assert isinstance(outcome, Completion)
    server.script.extend({"status": 400, "text": json.dumps({"error": {"message": told}})} for _ in range(2))
    [outcome] = run(engine, request(max_tokens=2048, is_given=False))
    assert isinstance(outcome, Completion)
    names = ("max_tokens", "max_completion_tokens")
    old, new = {"max_tokens": 2048}, {"max_completion_tokens": 2048}
    assert [{n: seen["body"][n] for n in names if n in seen["body"]} for seen in server.seen] == [
        old,
        new,
        old,
        new,
        {},
    ]


def test_a_response_that_is_too_long_is_refused(
    server: Any, engine: HttpEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "RESPONSE_BYTES_MAX", 1000)
    monkeypatch.setattr(http_connection, "RESPONSE_BYTES_MAX", 1000)
    [outcome] = run(engine, request(text="word " * 2000, max_tokens=2000))
    assert isinstance(outcome, Failure)
    assert "longer than 1000 bytes" in outcome.message


def test_one_failing_request_does_not_hold_the_others(server: Any, engine: HttpEngine) -> None:
    server.script.append({"status": 400, "text": "no"})
    outcomes = run(engine, *[request() for _ in range(10)])
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Completion"] * 9 + ["Failure"]


def test_closing_ends_what_is_in_flight_and_it_is_dead_after_that(server: Any) -> None:
    engine = HttpEngine(options(server.url))
    server.script.append(60.0)
    engine.add(1, engine.prepare(request()))
    while not server.seen:
        engine.step()
    engine.close()
    engine.close()
    with pytest.raises(EngineDead):
        engine.step()


def test_v1_is_added_where_it_is_missing() -> None:
    assert api_root("http://h:1") == api_root("http://h:1/") == api_root("http://h:1/v1/") == "http://h:1/v1"
    assert api_root("https://h/openai") == "https://h/openai/v1"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "ftp://x",
        "http://",
        "http:///v1",
        "http://[::1",
        "http://h:99999",
        "http://h:port/v1",
        "http://h:0",
    ],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="base URL"):
        api_root(url)


@pytest.mark.parametrize("url", ["http://user:secret@h/v1", "http://user:secret@[h", "http://user:secret@h:port"])
def test_an_address_with_credentials_is_refused_without_repeating_them(url: str) -> None:
    with pytest.raises(SettingsError, match="credentials") as told:
        api_root(url)
    assert "secret" not in str(told.value)


def test_a_raw_prompt_goes_to_the_endpoints_completions(server: Any, engine: HttpEngine) -> None:
    [outcome, _] = run(engine, raw_request("completion", "a b c"), raw_request("completion", (5, 6)))
    assert isinstance(outcome, Completion)
    assert (outcome.kind, outcome.choices) == ("completion", (Choice("a b c", "end_turn"),))
    assert {seen["path"] for seen in server.seen} == {"/v1/completions"}
    bodies = [seen["body"] for seen in server.seen]
    assert {"model": "served", "prompt": "a b c", "temperature": 1.0, "max_tokens": 4} in bodies
    assert {"model": "served", "prompt": [5, 6], "temperature": 1.0, "max_tokens": 4} in bodies


def test_vectors_come_in_the_order_of_the_inputs(server: Any, engine: HttpEngine) -> None:
    [plain, packed] = run(
        engine,
        raw_request("embedding", "a", "bcd", dimensions=2),
        raw_request("embedding", (7, 8), is_base64=True),
    )
    assert isinstance(plain, Completion)
    assert (plain.kind, plain.vectors, plain.usage.input_tokens) == ("embedding", ((1.0, 1.0), (3.0, 3.0)), 2)
    assert isinstance(packed, Completion)
    assert packed.vectors == (chat_server.packed([2.0, 2.0, 2.0]),)
    by_input = {str(seen["body"]["input"]): seen for seen in server.seen}
    assert {seen["path"] for seen in server.seen} == {"/v1/embeddings"}
    assert by_input["['a', 'bcd']"]["body"] == {
        "model": "served",
        "input": ["a", "bcd"],
        "dimensions": 2,
        "encoding_format": "float",
    }


def test_an_endpoint_that_makes_no_embeddings_or_too_few_is_that_requests_error(
    server: Any, engine: HttpEngine
) -> None:
    server.script.append({"status": 404, "text": json.dumps({"message": "no embeddings here"})})
    [refused] = run(engine, raw_request("embedding", "a"))
    message = "The endpoint answered 404: no embeddings here"
    assert refused == Failure(type="not_found_error", message=message, http_status=404)
    for _ in range(3):
        server.script.append({"status": 200, "text": json.dumps({"data": []})})
    [short] = run(engine, raw_request("embedding", "a"))
    assert isinstance(short, Failure)
    assert "it has 0 vectors instead of 1" in short.message
