"""The HTTP engine against a server that misbehaves as told."""

import importlib.util
import json
import random
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import structlog
from msgspec.structs import replace

from batchfile.engine.base import Finished
from batchfile.engine.http import connection as http_connection
from batchfile.engine.http import dispatch
from batchfile.engine.http import engine as http_engine
from batchfile.engine.http.engine import UNFORESEEN, HttpEngine, HttpOptions
from batchfile.engine.http.wire import Failed, Said, Throttled, Unserved, api_root, read_answer
from batchfile.errors import EngineDead, SettingsError
from batchfile.lines import parse_request
from batchfile.lines.result import decode_result, encode_result
from batchfile.types import (
    Choice,
    Completion,
    Defaults,
    Failure,
    Message,
    Outcome,
    Raw,
    Request,
    Sampling,
    Tool,
    ToolCall,
    Tools,
    Usage,
)

_path = Path(__file__).with_name("chat_server.py")
_spec = importlib.util.spec_from_file_location("chat_server", _path)
assert _spec is not None
assert _spec.loader is not None
chat_server = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(chat_server)


@pytest.fixture
def server() -> Iterator[Any]:
    with chat_server.running() as found:
        yield found


def options(url: str, **more: Any) -> HttpOptions:
    return HttpOptions(**({"base_url": url, "model": "served", "backoff_s": 0.01} | more))


@pytest.fixture
def engine(server: Any) -> Iterator[HttpEngine]:
    built = HttpEngine(options(server.url), random.Random(1))
    yield built
    built.close()


def request(text: str = "hello there", max_tokens: int = 8, is_given: bool = True, **sampling: Any) -> Request:
    return Request(
        custom_id="r",
        messages=(Message("system", "be kind"), Message("user", text)),
        sampling=Sampling(max_tokens=max_tokens, is_max_tokens_given=is_given, **sampling),
    )


def run(engine: HttpEngine, *requests: Request) -> list[Outcome]:
    for key, one in enumerate(requests):
        engine.add(key, engine.prepare(one))
    done: dict[int, Outcome] = {}
    while len(done) < len(requests):
        done |= {finished.key: finished.outcome for finished in engine.step()}
    return [done[key] for key in range(len(requests))]


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


def test_no_more_than_the_bound_run_at_once(server: Any) -> None:
    engine = HttpEngine(options(server.url, concurrency=3))
    run(engine, *[request() for _ in range(20)])
    engine.close()
    assert 1 <= server.most_at_once <= 3


def test_a_server_error_is_tried_three_times_and_then_the_requests_failure(server: Any, engine: HttpEngine) -> None:
    server.script.extend({"status": 500, "text": '{"error": {"message": "out of cheese"}}'} for _ in range(3))
    [outcome] = run(engine, request())
    assert outcome == Failure(
        type="model_error", message="The endpoint answered 500: out of cheese (3 attempts)", http_status=500
    )
    assert len(server.seen) == 3


def test_an_error_with_status_200_repeats_no_key(server: Any) -> None:
    engine = HttpEngine(options(server.url, api_key="sk-canary"), random.Random(1))
    server.script.append({"status": 200, "text": '{"error": {"message": "no sk-canary", "code": 400}}'})
    [outcome] = run(engine, request())
    engine.close()
    message = "The endpoint answered 200 with an error: no ***"
    assert outcome == Failure(type="invalid_request_error", message=message, http_status=400)


def test_a_second_attempt_may_succeed(server: Any, engine: HttpEngine) -> None:
    server.script.extend([{"status": 500}, {"status": 200, "text": "no json"}])
    [outcome] = run(engine, request())
    assert isinstance(outcome, Completion)
    assert len(server.seen) == 3


@pytest.mark.parametrize("status", [429, 502, 503, 504, 520, 521, 522, 523, 525, 526, 530])
def test_an_endpoint_that_is_down_fails_no_request(server: Any, engine: HttpEngine, status: int) -> None:
    server.are_probes_scripted = True
    server.script.extend({"status": status} for _ in range(12))
    outcomes = run(engine, *[request() for _ in range(3)])
    assert all(isinstance(outcome, Completion) for outcome in outcomes)
    assert engine.stats().extra["num_unserved"] == 0
    assert engine.stats().down_s == 0


def test_a_person_is_told_which_endpoint_does_not_answer_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_engine, "CHECK_SILENCE_S_MAX", 0.1)
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"

        def say(line: str) -> None:
            said.append(line)
            connection, _ = silent.accept()
            silent.close()
            connection.close()

        with pytest.raises(SettingsError, match=f"the endpoint {url}/v1 "):
            http_engine.check_endpoint(options(url), say)
    assert said == [f"checking the endpoint {url}/v1 ..."]


def test_a_check_that_is_answered_says_nothing(server: Any) -> None:
    said: list[str] = []
    http_engine.check_endpoint(options(server.url), said.append)
    assert said == []


def test_a_refused_connection_is_waited_out() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    engine = HttpEngine(options(f"http://127.0.0.1:{port}"))
    engine.add(1, engine.prepare(request()))
    while engine.stats().extra["num_unserved"] < 5 or not engine.stats().down_s:
        assert engine.step() == []
    with chat_server.running(port):
        done = []
        while not done:
            done = engine.step()
    engine.close()
    assert isinstance(done[0].outcome, Completion)


def test_an_endpoint_that_answers_no_connection_is_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a machine is gone or a firewall drops what comes: nothing refuses, and nothing answers."""
    monkeypatch.setattr(http_connection, "CONNECT_TIMEOUT_S", 0.2)
    with ExitStack() as sockets:
        silent = sockets.enter_context(socket.socket())
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        for _ in range(4):  # its queue is full, and further connections hang
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(silent.getsockname())
        engine = HttpEngine(options(f"http://127.0.0.1:{silent.getsockname()[1]}"))
        engine.add(1, engine.prepare(request()))
        while not engine.stats().down_s:
            assert engine.step() == []
        assert engine.stats().down_reason.endswith("/v1: no connection within 0.2 s")
        engine.close()


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_obeyed_by_its_request_and_holds_up_no_other(
    server: Any, engine: HttpEngine, status: int
) -> None:
    server.script.append({"status": status, "headers": {"Retry-After": "1"}})
    engine.add(0, engine.prepare(request("first")))
    while not server.seen:
        engine.step()
    started, done = time.monotonic(), []
    for key in range(1, 4):
        engine.add(key, engine.prepare(request("later")))
    while len(done) < 4:
        done += engine.step()
    assert [finished.key for finished in done][-1] == 0
    assert time.monotonic() - started >= 0.9


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        ("7", 7, 7),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
        ("Wed, 21 Oct 2099 07:28:00 GMT", 600, 600),
        ("86400", 600, 600),
        ("9" * 5000, 600, 600),
        ("Wed, 21 Oct 99999999 07:28:00 GMT", 0, 0),
        *((value, 0, 0) for value in ("", "soon", "-5", "1e9", "inf", "nan", "0", "\ud800", "1;2", "Wed, 99 Foo 2099")),
    ],
)
def test_a_retry_after_is_seconds_or_a_date_and_bounded(value: str, low: float, high: float) -> None:
    for status in (429, 503):
        answer = read_answer(Said(status, {"Retry-After": value}, b""), 10)
        assert isinstance(answer, Throttled | Unserved)
        assert low <= answer.retry_after_s <= high


def test_a_retry_after_that_is_a_date_is_that_far_from_now() -> None:
    soon = formatdate(time.time() + 100, usegmt=True)
    answer = read_answer(Said(429, {"Retry-After": soon}, b""), 10)
    assert isinstance(answer, Throttled)
    assert 90 < answer.retry_after_s <= 100


@pytest.mark.parametrize(
    ("words", "is_too_large"),
    [
        ("Request too large for m on tokens per min (TPM): Limit 30000, Requested 35000. Reduce it.", True),
        ("Request too large for model `m`: Limit: 6,000, Requested: 12,000", True),
        ("Request too large", True),
        ("Rate limit reached for m on tokens per min (TPM): Limit 10000, Used 9000, Requested 4000.", False),
        ("Rate limit reached. Limit 3 / min. Please try again in 20s.", False),
        ("You exceeded your current quota", False),
        ("", False),
    ],
)
def test_a_429_that_says_that_the_request_is_over_a_limit_is_told_apart(words: str, is_too_large: bool) -> None:
    for data in (json.dumps({"error": {"message": words}}), words):
        answer = read_answer(Said(429, {}, data.encode()), 10)
        assert isinstance(answer, Throttled)
        assert answer.is_too_large is is_too_large


def test_a_request_that_is_too_large_for_a_rate_limit_fails_at_once(server: Any, engine: HttpEngine) -> None:
    told = "Request too large for m on tokens per min (TPM): Limit 30000, Requested 35000."
    server.script.append({"status": 429, "text": json.dumps({"error": {"message": told}})})
    [outcome] = run(engine, request())
    assert outcome == Failure(type="rate_limit_error", message=f"The endpoint answered 429: {told}", http_status=429)
    assert len(server.seen) == 1


def test_a_request_that_cloudflare_gave_up_waiting_for_spends_an_attempt() -> None:
    assert isinstance(read_answer(Said(524, {}, b""), 10), Failed)


def test_a_server_that_breaks_the_connection_of_one_request_each_time_fails_it(server: Any, engine: HttpEngine) -> None:
    server.script.extend(chat_server.BREAK for _ in range(3))
    [outcome] = run(engine, request())
    assert isinstance(outcome, Failure)
    assert outcome.message.startswith("The endpoint's connection broke: ")
    assert outcome.message.endswith("(3 attempts)")


def test_a_timeout_spends_an_attempt(server: Any) -> None:
    engine = HttpEngine(options(server.url, timeout_s=0.2))
    server.script.extend([5.0, 5.0, 5.0])
    [outcome] = run(engine, request())
    engine.close()
    assert outcome == Failure(type="model_error", message="The endpoint did not answer within 0.2 s. (3 attempts)")


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (400, '{"error": {"message": "temperature is wrong"}}', "invalid_request_error", "temperature is wrong"),
        (422, '{"detail": "no such thing"}', "invalid_request_error", "no such thing"),
        (403, '{"error": "not this one"}', "permission_error", "not this one"),
        (404, '{"message": "no such model"}', "not_found_error", "no such model"),
        (418, "", "invalid_request_error", "(no message)"),
    ],
)
def test_a_refused_request_is_errored_at_once_in_the_servers_words(
    server: Any, engine: HttpEngine, status: int, body: str, kind: str, words: str
) -> None:
    run(engine, request())  # it has answered well: its address and its key are right
    server.script.append({"status": status, "text": body})
    [outcome] = run(engine, request())
    assert isinstance(outcome, Failure)
    assert (outcome.type, outcome.http_status) == (kind, status)
    assert words in outcome.message
    assert len(server.seen) == 2


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"status": 401, "text": '{"error": "who are you"}'}, "it answered 401: who are you"),
        ({"status": 403, "text": "not from here"}, "it answered 403: not from here"),
        ({"status": 404, "text": "no such model"}, "it answered 404: no such model"),
        ({"status": 302, "headers": {"Location": "/login"}}, "it answered 302 and points to /login"),
        ({"status": 200, "text": "<html>Sign in", "content_type": "text/html"}, "it answered 200: a web page"),
    ],
)
def test_a_wrong_address_or_key_is_waited_out_and_said_and_fails_no_request(
    server: Any, engine: HttpEngine, told: dict[str, Any], words: str
) -> None:
    server.always = told
    engine.add(1, engine.prepare(request()))
    with structlog.testing.capture_logs() as events:
        while not (events and engine.stats().down_reason):
            assert engine.step() == []
    assert engine.stats().down_reason.startswith(f"{server.url}/v1: {words}")
    assert [event["event"] for event in events] == ["endpoint.down"]
    assert words in events[0]["reason"]
    server.always = None
    done: list[Finished] = []
    while not done:
        done = engine.step()
    assert isinstance(done[0].outcome, Completion)


GONE = [
    {"status": 404, "text": "<html>Not Found", "content_type": "text/html"},
    {"status": 403, "text": "<html>Forbidden", "content_type": "text/html"},
    {"status": 404, "text": "404 page not found"},
    {"status": 404},
    {"status": 200, "text": "<html>Welcome", "content_type": "text/html"},
]


@pytest.mark.parametrize("told", GONE)
@pytest.mark.parametrize("kind", ["chat", "embedding"])
def test_a_proxy_that_has_lost_its_endpoint_is_waited_out_and_fails_no_request(
    server: Any, engine: HttpEngine, told: dict[str, Any], kind: str
) -> None:
    one = request() if kind == "chat" else raw_request("embedding", "a")
    run(engine, one)
    server.are_probes_scripted = True
    server.script.extend(told for _ in range(12))
    [outcome] = run(engine, one)
    assert isinstance(outcome, Completion)


@pytest.mark.parametrize(
    "told",
    [
        *GONE,
        {"status": 401, "text": "who are you"},
        {"status": 302, "headers": {"Location": "/captcha"}, "text": "found"},
        {"status": 502, "text": "<html><head><style>x</style></head><body>Bad\n Gateway", "content_type": "text/html"},
        {"status": 520},
    ],
)
def test_what_a_firewall_refuses_is_that_requests_own_after_three_attempts(
    server: Any, engine: HttpEngine, told: dict[str, Any]
) -> None:
    """The endpoint itself can be reached: waiting for it would hold up every other request, and for ever."""
    run(engine, request())
    server.script.extend(told for _ in range(3))
    [outcome] = run(engine, request())
    assert isinstance(outcome, Failure)
    assert outcome.message.startswith(f"The endpoint answered {told['status']}: ")
    assert outcome.message.endswith("(3 attempts)")
    assert len(server.seen) == 4


def test_a_key_that_is_taken_away_fails_nothing_but_one_missing_path_does(server: Any, engine: HttpEngine) -> None:
    server.script.append({"status": 404, "text": '{"detail": "no embeddings here"}'})
    [outcome] = run(engine, raw_request("embedding", "a"))
    assert isinstance(outcome, Failure)
    run(engine, request())
    server.script.append({"status": 401})
    [outcome] = run(engine, request())
    assert isinstance(outcome, Completion)


def test_an_endpoint_that_breaks_every_connection_fails_no_request(server: Any, engine: HttpEngine) -> None:
    server.are_probes_scripted = True
    server.script.extend(chat_server.BREAK for _ in range(8))
    [outcome] = run(engine, request())
    assert isinstance(outcome, Completion)


def hasty(url: str) -> HttpEngine:
    return HttpEngine(options(url, wait_for_endpoint=False), random.Random(1))


@pytest.mark.parametrize("status", [401, 200])
def test_an_endpoint_that_never_answered_well_ends_an_engine_that_shall_not_wait(server: Any, status: int) -> None:
    server.are_probes_scripted = True
    told = {"error": {"message": "who are you", "code": 401}}
    server.script.extend({"status": status, "text": json.dumps(told)} for _ in range(50))
    engine = hasty(server.url)
    with pytest.raises(SettingsError, match=r"requires an API key \(401: who are you\): set OPENAI_API_KEY"):
        run(engine, *[request() for _ in range(8)])
    engine.close()


@pytest.mark.parametrize("status", [429, 502, 503, 504, 530])
def test_an_endpoint_that_is_busy_is_waited_for_whatever_it_answered_before(server: Any, status: int) -> None:
    server.are_probes_scripted = True
    server.script.extend({"status": status, "text": "<html>soon"} for _ in range(12))
    engine = hasty(server.url)
    [outcome] = run(engine, request())
    engine.close()
    assert isinstance(outcome, Completion)


@pytest.mark.parametrize("told", [{"status": 401}, {"status": 302}, {"status": 200, "content_type": "text/html"}])
def test_after_one_good_answer_a_wrong_address_or_key_is_waited_out(server: Any, told: dict[str, Any]) -> None:
    engine = hasty(server.url)
    run(engine, request())
    server.are_probes_scripted = True
    server.script.extend(told for _ in range(12))
    [outcome] = run(engine, request())
    engine.close()
    assert isinstance(outcome, Completion)


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


def raw_request(kind: Any, *inputs: Any, sampling: Sampling | None = None, **more: Any) -> Request:
    given = Raw(kind=kind, inputs=inputs, **more)
    return Request(custom_id="r", messages=(), raw=given, sampling=sampling or Sampling(max_tokens=4))


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
    assert "0 vectors, and 1 were asked for" in short.message
