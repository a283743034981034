"""OpenAI's lines into requests, and native results into its output lines."""

import json
from typing import Any

import pytest

from batchfile.errors import InvalidRequest
from batchfile.types import Choice, Completion, Defaults, Failure, Message, Outcome, Request, Sampling, Usage
from tests.helpers.lines import encode_result, find_problems, openai_file, parse_request

HI = [{"role": "user", "content": "hi"}]


def line(*, method: str = "POST", url: str = "/v1/chat/completions", **body: Any) -> bytes:
    whole = {"model": "m", "messages": HI, **body}
    return json.dumps({"custom_id": "a", "method": method, "url": url, "body": whole}).encode()


def parsed(**body: Any) -> Request:
    return parse_request(line(**body), Defaults())


def refusal(data: bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse_request(data, Defaults())
    return str(caught.value)


def test_the_least_request_gets_openais_temperature() -> None:
    assert parsed() == Request(
        custom_id="a",
        messages=(Message("user", "hi"),),
        model="m",
        sampling=Sampling(max_tokens=2048, is_max_tokens_given=False, temperature=1.0),
        keeps_thinking=True,
    )


def test_every_sampling_key_arrives() -> None:
    request = parsed(
        max_completion_tokens=5,
        max_tokens=5,
        temperature=0,
        top_p=0.5,
        top_k=40,
        min_p=0.1,
        n=3,
        stop="x",
        seed=1,
        presence_penalty=1,
        frequency_penalty=-1,
        repetition_penalty=1.2,
    )
    assert request.sampling == Sampling(
        max_tokens=5,
        limit_key="max_completion_tokens",
        temperature=0.0,
        top_p=0.5,
        top_k=40,
        min_p=0.1,
        num_choices=3,
        stop=("x",),
        seed=1,
        presence_penalty=1.0,
        frequency_penalty=-1.0,
        repetition_penalty=1.2,
    )
    assert parsed(stop=["a", "b"], max_tokens=9).sampling.stop == ("a", "b")
    assert parsed(max_tokens=9).sampling.max_tokens == 9


def test_a_developer_turn_is_a_system_turn() -> None:
    request = parsed(messages=[{"role": "developer", "content": "d"}, *HI, {"role": "system", "content": "s"}])
    assert request.messages == (Message("system", "d\n\ns"), Message("user", "hi"))


def test_an_answer_sent_back_as_history_is_taken() -> None:
    answer = {"role": "assistant", "content": "yo", "refusal": None, "tool_calls": None, "annotations": []}
    assert parsed(messages=[*HI, answer, {"role": "user", "content": [{"type": "text", "text": "x"}]}]).messages == (
        Message("user", "hi"),
        Message("assistant", "yo"),
        Message("user", "x"),
    )


SCHEMA = {"type": "object"}


@pytest.mark.parametrize(
    ("body", "schema"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, {}),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}}, SCHEMA),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": True}}}, {}),
        ({"structured_outputs": {"json": SCHEMA}}, SCHEMA),
    ],
)
def test_a_response_format_becomes_a_schema(body: dict[str, Any], schema: Any) -> None:
    assert parsed(**body).sampling.json_schema == schema


def test_an_endpoint_gets_a_schema_with_its_name_and_strict_as_the_request_has_them() -> None:
    named = {"name": "lead", "strict": False, "description": "d", "schema": SCHEMA}
    for form in (named, {"name": "lead", "schema": SCHEMA}, {"name": "lead"}):
        asked = {"type": "json_schema", "json_schema": form}
        assert parsed(response_format=asked).sampling.schema_form == form
    assert parsed(response_format={"type": "json_object"}).sampling.schema_form is None


def test_turns_of_speakers_with_different_names_stay_apart() -> None:
    request = parsed(
        messages=[
            {"role": "system", "name": "boss", "content": "s"},
            {"role": "user", "name": "ann", "content": "a"},
            {"role": "user", "name": "ann", "content": "b"},
            {"role": "user", "name": "bob", "content": "c"},
        ]
    )
    assert request.messages == (
        Message("system", "s", name="boss"),
        Message("user", "a\n\nb", name="ann"),
        Message("user", "c", name="bob"),
    )


def test_system_turns_with_different_names_are_rejected() -> None:
    named = [{"role": "system", "name": name, "content": "s"} for name in ("a", "b")]
    message = "body.messages[1].name: system turns with different names are not supported"
    assert refusal(line(model="m", messages=[*named, *HI])).startswith(message)


def test_keys_that_ask_for_nothing_are_ignored() -> None:
    assert parsed(user="u", store=True, logprobs=False, tools=[], tool_choice="auto", stream=False, n=1) == parsed()


URLS = (
    '"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages", "/v1/score", '
    '"/v1/rerank", "/v1/classify" or "/v1/pooling"'
)
BAD = [
    ({"method": "GET"}, 'method: must be "POST", got "GET"'),
    ({"url": "/v1/tokenize"}, f'url: must be {URLS}, got "/v1/tokenize"'),
    ({"url": "/v1/chat"}, f'url: must be {URLS}, got "/v1/chat"'),
    ({"n": 0}, "body.n: must be at least 1, got 0"),
    ({"n": 129}, "body.n: must be at most 128, got 129"),
    ({"max_tokens": 0}, "body.max_tokens: must be at least 1, got 0"),
    ({"max_output_tokens": 5}, "body.max_output_tokens: unknown field; did you mean max_tokens?"),
    ({"functions": [{"name": "f"}]}, "body.functions: is deprecated and not supported; use tools"),
    ({"stream": True}, "body.stream: streaming is not supported in a batch; remove it or set it to false"),
    ({"stop": 5}, "body.stop: must be a string or a list of strings, got 5"),
    ({"stop": [""]}, "body.stop[0]: must not be empty"),
    ({"stop": ""}, "body.stop: must not be empty"),
    (
        {"response_format": {"type": "json_schema"}},
        "body.response_format: json_schema is missing; put the schema there",
    ),
    (
        {"response_format": {"type": "xml"}},
        'body.response_format.type: must be "text", "json_object", "json_schema" or "structural_tag", got "xml"',
    ),
    (
        {"messages": [{"role": "bot", "content": "x"}]},
        'body.messages[0].role: must be "system", "developer", "user", "assistant" or "tool", got "bot"',
    ),
    (
        {"messages": [{"role": "assistant", "content": "x", "function_call": {"name": "f"}}]},
        "body.messages[0].function_call: is deprecated and not supported; use tool_calls",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "x"}}]}]},
        'body.messages[0].content[0]: blocks of type "video_url" are not supported; use a text block',
    ),
    (
        {"messages": [{"role": "user", "content": "x", "refusal": "No."}]},
        "body.messages[0].refusal: refusal belongs in an assistant turn",
    ),
    (
        {"max_tokens": 7, "max_completion_tokens": 5},
        "body.max_completion_tokens: is 5, but max_tokens is 7; keep one of them",
    ),
    (
        {"response_format": {"type": "text", "json_schema": {"schema": {"type": "object"}}}},
        'body.response_format: has a json_schema, but its type is "text"; make it "json_schema" or remove the schema',
    ),
    (
        {"response_format": {"type": "json_object"}, "structured_outputs": {"json": {}}},
        "body.structured_outputs: conflicts with response_format; keep one of them",
    ),
    ({"messages": [{"role": "developer", "content": "x"}]}, "body.messages: has no user turn; add one"),
]


def test_a_refusal_that_is_sent_back_is_what_the_assistant_said() -> None:
    asked = {"role": "user", "content": "x"}
    for turn in ({"refusal": "No."}, {"content": None, "refusal": "No."}, {"content": "No.", "refusal": None}):
        found = parsed(messages=[asked, {"role": "assistant", **turn}, asked])
        assert found.messages == (Message("user", "x"), Message("assistant", "No."), Message("user", "x"))


@pytest.mark.parametrize(("parts", "message"), BAD, ids=[row[1][:60] for row in BAD])
def test_what_is_wrong_is_named(parts: dict[str, Any], message: str) -> None:
    assert refusal(line(**parts)) == message


def test_a_line_without_method_and_url_is_a_chat_completion() -> None:
    bare = json.dumps({"custom_id": "a", "body": {"model": "m", "messages": HI}}).encode()
    assert find_problems(bare) == []
    assert parse_request(bare, Defaults()) == parse_request(line(), Defaults()), "as in Mistral's batches"


@pytest.mark.parametrize(
    "url",
    ["v1/chat/completions", "/chat/completions", "/v1/chat/completions/", "https://api.example/v1/chat/completions"],
)
@pytest.mark.parametrize("method", ["POST", "post"])
def test_a_url_whose_meaning_is_plain_is_served(url: str, method: str) -> None:
    assert parse_request(line(url=url, method=method), Defaults()) == parse_request(line(), Defaults())


def rendered(outcome: Outcome) -> Any:
    result = encode_result("a", outcome, "m")
    [line] = openai_file([result + b"\n"], batch_id="batch_1", created=1_800_000_000, is_output=None)
    return json.loads(line)


def test_a_success_is_a_chat_completion() -> None:
    usage = Usage(input_tokens=5, output_tokens=2, cached_tokens=3)
    choices = (Choice("yes", "end_turn"), Choice("no", "max_tokens"), Choice("", "stop_sequence"))
    message = {"role": "assistant", "refusal": None}
    assert rendered(Completion(choices=choices, usage=usage)) == {
        "id": "batch_req_batch_1_0",
        "custom_id": "a",
        "response": {
            "status_code": 200,
            "request_id": "req_batch_1_0",
            "body": {
                "id": "chatcmpl-batch_1_0",
                "object": "chat.completion",
                "created": 1_800_000_000,
                "model": "m",
                "choices": [
                    {"index": 0, "message": {**message, "content": "yes"}, "logprobs": None, "finish_reason": "stop"},
                    {"index": 1, "message": {**message, "content": "no"}, "logprobs": None, "finish_reason": "length"},
                    {"index": 2, "message": {**message, "content": ""}, "logprobs": None, "finish_reason": "stop"},
                ],
                "usage": {
                    "prompt_tokens": 5,
                    "completion_tokens": 2,
                    "total_tokens": 7,
                    "prompt_tokens_details": {"cached_tokens": 3},
                },
            },
        },
        "error": None,
    }


@pytest.mark.parametrize(
    ("kind", "status", "error_type", "code"),
    [
        ("invalid_request_error", 400, "invalid_request_error", None),
        ("engine_crash", 500, "server_error", "engine_crash"),
        ("not_found_error", 404, "not_found_error", None),
        ("permission_error", 403, "permission_error", None),
        ("rate_limit_error", 429, "rate_limit_error", None),
        ("overloaded_error", 503, "server_error", "overloaded_error"),
    ],
)
def test_an_errored_request_has_an_http_status(kind: str, status: int, error_type: str, code: str | None) -> None:
    line = rendered(Failure(type=kind, message="why"))
    assert line["response"]["status_code"] == status
    assert line["response"]["body"] == {"error": {"message": "why", "type": error_type, "param": None, "code": code}}
    assert line["error"] is None


@pytest.mark.parametrize("status", [400, 404, 408, 413, 422, 429, 500, 502, 504])
def test_an_endpoints_status_is_kept(status: int) -> None:
    kind = "invalid_request_error" if status < 500 else "model_error"
    line = rendered(Failure(type=kind, message="why", http_status=status))
    assert line["response"]["status_code"] == status
    assert line["response"]["body"]["error"]["type"] == (kind if status < 500 else "server_error")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choice", "message", "reason"),
    [
        (Choice("I cannot.", "refusal"), {"content": None, "refusal": "I cannot."}, "stop"),
        (Choice("so far", "content_filter"), {"content": "so far", "refusal": None}, "content_filter"),
        (Choice("", "content_filter"), {"content": "", "refusal": None}, "content_filter"),
    ],
)
def test_a_refusal_and_a_filter_are_openais_own(choice: Choice, message: dict[str, Any], reason: str) -> None:
    body = rendered(Completion(choices=(choice,), usage=Usage(unknown=1)))["response"]["body"]
    assert body["choices"][0]["message"] == {"role": "assistant"} | message
    assert (body["choices"][0]["finish_reason"], body["usage"]) == (reason, None)
    from openai.types.chat import ChatCompletion  # takes a second

    ChatCompletion.model_validate_json(json.dumps(body), strict=True)


@pytest.mark.slow
def test_vectors_without_a_known_usage_say_so() -> None:
    made = Completion(choices=(), usage=Usage(unknown=1), kind="embedding", vectors=((0.5,),))
    body = rendered(made)["response"]["body"]
    assert body["usage"] == {"prompt_tokens": 0, "total_tokens": 0, "is_unknown": True}
    from openai.types import CreateEmbeddingResponse  # takes a second

    CreateEmbeddingResponse.model_validate_json(json.dumps(body), strict=True)


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("body.messages[0].role: must be x (and 1 more)", "messages[0].role"),
        ("model: 'x' is not a pool, model or alias", "model"),
        ("line 4: model: 'x' is not a pool, model or alias", None),
        ("url: must be the endpoint", None),
    ],
)
def test_the_place_that_a_message_names_is_the_param(message: str, param: str | None) -> None:
    line = rendered(Failure(type="invalid_request_error", message=message))
    assert line["response"]["body"]["error"]["param"] == param


@pytest.mark.parametrize(("status", "code"), [("canceled", "batch_cancelled"), ("expired", "batch_expired")])
def test_what_never_ran_has_no_response(status: Any, code: str) -> None:
    line = rendered(Failure(type=status, message="why", status=status))
    assert line["response"] is None
    assert line["error"] == {"code": code, "message": "why"}
