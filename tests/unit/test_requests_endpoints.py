"""The endpoints that a line's url may name, beyond completions and embeddings: what is read, and how results look."""

import json
from typing import Any

import pytest
from anthropic.types import Message
from msgspec.structs import replace
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from batchfile.endpoints import KINDS
from batchfile.errors import InvalidRequest
from batchfile.lines.formats import openai_completions, openai_responses
from batchfile.lines.formats.bodies import FORMATS
from batchfile.testing import EchoEngine
from batchfile.types import Choice, Completion, Defaults, TokenLogprob, TopLogprob, Usage
from tests.helpers.lines import (
    Media,
    anthropic_lines,
    encode_result,
    openai_chat,
    openai_embeddings,
    openai_file,
    parse,
    parse_request,
)
from tests.unit.test_requests import HI, LEAST, SCHEMA, parsed

RESPONSE = {
    "instructions": "Be brief.",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "reasoning", "id": "r", "summary": []},
        {"type": "function_call", "call_id": "c", "name": "look", "arguments": '{"city": "Bern"}'},
        {"type": "function_call_output", "call_id": "c", "output": "sunny"},
    ],
    "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}, "verbosity": "low"},
    "reasoning": {"effort": "low", "summary": "auto"},
    "max_output_tokens": 9,
    "tools": [{"type": "function", "name": "look", "parameters": SCHEMA, "strict": True}],
    "store": False,
}


def test_every_endpoint_has_a_format() -> None:
    assert [*FORMATS] == [*KINDS]


@pytest.mark.parametrize("url", [*LEAST])
def test_a_valid_line_is_not_searched_for_problems(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search validates the line again, and slower."""
    monkeypatch.setattr(parse, "find_problems", lambda envelope: pytest.fail("searched"))
    label = "metadata" if url in ("params", "/v1/messages") else "user"
    assert parsed(url, {label: "me"}).options is None
    options = parsed(url, {"truncate_prompt_tokens": 9, "user": "me"} if label == "user" else {"priority": 0}).options
    assert options is not None


def test_a_response_is_read_as_the_same_chat_completion() -> None:
    chat = parsed(
        openai_chat.URL,
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Weather?"},
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "c", "function": {"name": "look", "arguments": '{"city": "Bern"}'}}],
                },
                {"role": "tool", "tool_call_id": "c", "content": "sunny"},
            ],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": SCHEMA, "strict": True},
            },
            "verbosity": "low",
            "reasoning_effort": "low",
            "max_completion_tokens": 9,
            "tools": [{"type": "function", "function": {"name": "look", "parameters": SCHEMA, "strict": True}}],
        },
    )
    assert parsed(openai_responses.URL, RESPONSE) == replace(chat, form="response")


@pytest.mark.parametrize("kind", ["chat", "message", "response"])
def test_token_ids_and_the_digests_of_media_are_in_the_results_of_every_format(kind: Any) -> None:
    choice = Choice("hi", "end_turn", token_ids=(7, 8))
    made = Completion(choices=(choice,), usage=Usage(), kind=kind, prompt_token_ids=(1, 2), prompt_logprobs=[None])
    line = encode_result("a", made, "m", media=(Media(kind="image", source="", digest="ab"),))
    [row] = b"".join(openai_file([line], batch_id="b", created=0, is_output=None)).splitlines()
    body = json.loads(row)["response"]["body"]
    found = {name: body.get(name) for name in ("prompt_token_ids", "prompt_logprobs", "media")}
    assert found == {
        "prompt_token_ids": [1, 2],
        "prompt_logprobs": [None],
        "media": [{"type": "image", "sha256": "ab"}],
    }
    assert (body["choices"][0] if kind == "chat" else body)["token_ids"] == [7, 8]


@pytest.mark.parametrize(
    ("url", "body", "message"),
    [
        (openai_responses.URL, {"input": [{"type": "item_reference", "id": "x"}]}, "body.input"),
        (openai_responses.URL, {"input": [{"role": "system", "content": "x"}]}, "body.input: has no user turn; add"),
        (openai_responses.URL, {"previous_response_id": "r"}, "body.previous_response_id: requests of a batch cannot"),
        (openai_responses.URL, {"tools": [{"type": "web_search"}]}, "body.tools[0].type: must be"),
        (openai_responses.URL, {"tool_choice": "required"}, "body.tool_choice: requires a tool call, but there are no"),
        ("/v1/score", {"text_1": ["a", "b"]}, "body: has 2 and 1 texts; give as many of both, or one of"),
        ("/v1/score", {"queries": "a"}, "body: needs text_1 and text_2"),
        ("/v1/rerank", {"documents": []}, "body.documents"),
        ("/v1/rerank", {"top_n": -1}, "body.top_n: must be at least 0, got -1"),
        ("/v1/tokenize", {}, 'url: must be "/v1/chat/completions", '),
        ("/v1/audio/transcriptions", {}, 'url: "/v1/audio/transcriptions" is not served; send the recording as an'),
        ("/v1/classify", {"messages": HI}, "body.messages: conversations are not supported here; put the text"),
        ("/v1/pooling", {"task": "plugin"}, 'body.task: must be "embed", "classify", '),
        ("/v1/pooling", {"dimensions": 8}, "body.dimensions: pooling has no dimensions; use /v1/embeddings"),
        (openai_completions.URL, {"max_tokens": 0}, "body.max_tokens: must be at least 1, got 0"),
    ],
)
def test_what_is_wrong_with_a_body_is_named(url: str, body: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_request(
            json.dumps({"custom_id": "a", "method": "POST", "url": url, "body": LEAST.get(url, {}) | body}).encode(),
            Defaults(),
        )
    assert str(refused.value).startswith(message)


def test_a_message_in_openais_format_is_read_as_params() -> None:
    body = {"messages": HI, "max_tokens": 5, "system": "x"}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/messages", "body": body}
    made = parse_request(json.dumps(line).encode(), Defaults())
    assert made == replace(parsed("params", body), form="message")
    line["body"] = {"messages": HI, "speed": "fast"}
    with pytest.raises(InvalidRequest, match=r"^body\.speed: "):
        parse_request(json.dumps(line).encode(), Defaults())


def test_vllms_other_urls_are_the_same_endpoints() -> None:
    for url in ("/rerank", "/v2/rerank", "https://host/v2/rerank"):
        line = {"custom_id": "a", "method": "POST", "url": url, "body": LEAST["/v1/rerank"]}
        assert parse_request(json.dumps(line).encode(), Defaults()) == parsed("/v1/rerank", {})


def test_a_prompt_may_be_echoed_without_an_answer() -> None:
    made = parsed(openai_completions.URL, {"max_tokens": 0, "echo": True, "logprobs": 1})
    assert made.sampling.max_tokens == 0
    alone = results(openai_completions.URL, {"prompt": "a b", "max_tokens": 0, "echo": True}, EchoEngine())
    assert alone["choices"][0]["text"] == "a b"


def test_the_first_token_of_a_prompt_has_no_log_probability_in_results() -> None:
    first = TokenLogprob(token="a", logprob=None)
    second = TokenLogprob(token="b", logprob=-1.0, top_logprobs=(TopLogprob(token="c", logprob=-0.5),))
    choice = Choice("ab", "max_tokens", logprobs=(first, second))
    outcome = Completion(choices=(choice,), usage=Usage(), kind="completion")
    lines = [encode_result("a", outcome, "m") + b"\n"]
    [made] = openai_file(lines, batch_id="batch_1", created=1, is_output=None)
    assert json.loads(made)["response"]["body"]["choices"][0]["logprobs"] == {
        "tokens": ["a", "b"],
        "token_logprobs": [None, -1.0],
        "top_logprobs": [None, {"c": -0.5}],
        "text_offset": [0, 1],
    }


@pytest.mark.parametrize(
    "url",
    [
        "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21",
        "https://x.openai.azure.com/openai/deployments/gpt-4o/chat/completions",
        "https://x.openai.azure.com/openai/v1/chat/completions",
        "/chat/completions",
    ],
)
def test_azures_urls_are_chat_completions(url: str) -> None:
    line = {"custom_id": "a", "method": "POST", "url": url, "body": {"messages": HI}}
    assert parse_request(json.dumps(line).encode(), Defaults()) == parsed(openai_chat.URL, {})


def results(place: str, parts: dict[str, Any], engine: EchoEngine) -> dict[str, Any]:
    """The body of the result, as a reader of OpenAI's output file gets it."""
    engine.add(1, engine.prepare(parsed(place, parts)))
    [finished] = engine.step()
    line = encode_result("a", finished.outcome, "m")
    [made] = openai_file([line + b"\n"], batch_id="batch_1", created=1, is_output=None)
    body: dict[str, Any] = json.loads(made)["response"]["body"]
    return body


@pytest.mark.parametrize(
    ("kind", "vector", "key", "shown"),
    [
        ("rerank", (0.0, float("nan")), "results", {"index": 0, "relevance_score": None}),
        ("classification", (float("nan"), 1.0), "data", {"probs": [None, 1.0], "num_classes": 2}),
        ("score", (float("nan"),), "data", {"index": 0, "score": None}),
    ],
)
def test_a_number_that_is_not_finite_is_null_and_the_rest_of_the_file_is_written(
    kind: Any, vector: Any, key: str, shown: dict[str, Any]
) -> None:
    line = encode_result("a", Completion(choices=(), usage=Usage(), kind=kind, vectors=(vector,)), "m")
    [made] = openai_file([line + b"\n"], batch_id="batch_1", created=1, is_output=None)
    assert json.loads(made)["response"]["body"][key][0].items() >= shown.items()


def test_results_have_the_shape_of_their_endpoint() -> None:
    talking = EchoEngine(thinking="hm", tool_input={"a": 1})
    found = Response.model_validate(results(openai_responses.URL, {"input": "a b c", "max_output_tokens": 2}, talking))
    assert (found.output_text, found.status) == ("a b", "incomplete")
    assert found.usage is not None
    assert found.usage.output_tokens == 2
    called = results(openai_responses.URL, {"tools": [{"type": "function", "name": "f"}]}, talking)
    assert [(item["type"], item.get("name")) for item in called["output"]] == [("function_call", "f")]

    line = {"custom_id": "a", "method": "POST", "url": "/v1/messages", "body": {"messages": HI, "max_tokens": 5}}
    talking.add(1, talking.prepare(parse_request(json.dumps(line).encode(), Defaults())))
    [finished] = talking.step()
    [made] = openai_file(
        [encode_result("a", finished.outcome, "m") + b"\n"], batch_id="batch_1", created=1, is_output=None
    )
    message = Message.model_validate(json.loads(made)["response"]["body"])
    assert (message.type, message.stop_reason) == ("message", "end_turn")

    comparing = EchoEngine(task="embed")
    scores = results("/v1/score", {"text_1": "a", "text_2": ["b", "a"]}, comparing)["data"]
    assert [(one["object"], one["index"]) for one in scores] == [("score", 0), ("score", 1)]
    assert scores[1]["score"] == pytest.approx(1)
    assert scores[0]["score"] < 0.99
    ranked = results("/v1/rerank", {"query": "a", "documents": ["b", "a", "c"], "top_n": 2}, comparing)
    assert [one["index"] for one in ranked["results"]][:1] == [1]
    assert len(ranked["results"]) == 2
    pooled = results("/v1/pooling", {"input": ["a", "b"]}, comparing)
    vectors = [one.pop("data") for one in pooled["data"]]
    assert pooled["data"] == [{"index": index, "object": "pooling"} for index in (0, 1)]
    embedded = results(openai_embeddings.URL, {"input": ["a", "b"]}, comparing)["data"]
    assert [one["embedding"] for one in embedded] == vectors
    classes = results("/v1/classify", {"input": ["a", "b"]}, EchoEngine(task="classify"))
    assert classes["id"].startswith("classify-")
    for index, one in enumerate(classes["data"]):
        assert (one["index"], one["num_classes"], sum(one["probs"])) == (index, 2, 1)
        assert one["label"] == f"LABEL_{one['probs'].index(max(one['probs']))}"

    chat = results(openai_chat.URL, {"messages": HI, "logprobs": True, "top_logprobs": 1, "n": 2}, talking)
    ChatCompletion.model_validate(chat, strict=True)
    assert [choice["logprobs"]["content"][0]["token"] for choice in chat["choices"]] == ["hi", "hi"]
    raw = results(openai_completions.URL, {"prompt": "a b", "logprobs": 1, "echo": True}, talking)
    assert raw["choices"][0]["text"] == "a ba b"
    assert raw["choices"][0]["logprobs"]["text_offset"] == [0, 1, 4][: len(raw["choices"][0]["logprobs"]["tokens"])]


def test_anthropics_results_carry_what_the_native_format_asked_for() -> None:
    engine = EchoEngine()
    engine.add(1, engine.prepare(parsed("params", {"logprobs": True, "top_logprobs": 1})))
    engine.add(2, engine.prepare(parsed("params", {"n": 2})))
    lines = [encode_result("a", finished.outcome, "m") + b"\n" for finished in engine.step()]
    first, second = [
        json.loads(line)["result"]["message"] for line in b"".join(anthropic_lines(lines, "b_1")).splitlines()
    ]
    assert [token["token"] for token in first["logprobs"]] == ["hi"]
    assert len(second["choices"]) == 2
    assert first.keys() - second.keys() == {"logprobs"}
