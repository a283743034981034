"""What an endpoint's answer means: refusals, usage, errors with status 200, vectors, and answers that are none."""

import base64
import json
import struct
from dataclasses import replace
from typing import Any

import pytest

from batchfile.engine.http.answer import ExpectedAnswer, expected_answer
from batchfile.engine.http.wire import (
    Answer,
    Failed,
    Said,
    Throttled,
    Unserved,
    endpoints_words,
    read_answer,
    unwrapped,
)
from batchfile.types import Choice, Completion, Failure, Raw, Request, Sampling, Usage

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"city": "Bern"}'}}
TEXT = ExpectedAnswer()
TOOLS = ExpectedAnswer("toolu_")


def read(body: Any, wanted: ExpectedAnswer = TEXT, status: int = 200) -> Answer:
    said = Said(status, {}, body if isinstance(body, bytes) else json.dumps(body).encode())
    return read_answer(unwrapped(said), 10**6, wanted)


def answer(content: Any, reason: Any = "stop", **message: Any) -> dict[str, Any]:
    told = {"message": {"role": "assistant", "content": content} | message, "finish_reason": reason}
    return {"choices": [told], "usage": USAGE}


def choice(body: Any, wanted: ExpectedAnswer = TEXT) -> Choice:
    found = read(body, wanted)
    assert isinstance(found, Completion), found
    return found.choices[0]


def odd(body: Any, wanted: ExpectedAnswer = TEXT) -> str:
    found = read(body, wanted)
    assert isinstance(found, Failed), found
    return found.message


@pytest.mark.parametrize(
    ("body", "text", "reason"),
    [
        (answer("so far", "content_filter"), "so far", "content_filter"),
        (answer("", "content_filter"), "", "content_filter"),
        (answer(None, "content_filter"), "", "content_filter"),
        (answer(None, refusal="I cannot."), "I cannot.", "refusal"),
        (answer(None, "length", refusal="I can"), "I can", "refusal"),
        (answer(None, "content_filter", refusal="I cannot."), "I cannot.", "content_filter"),
        (answer("I cannot.", "refusal"), "I cannot.", "refusal"),
        (answer("so far", refusal="I cannot."), "so far\n\nI cannot.", "refusal"),
        (answer([{"type": "refusal", "refusal": "I cannot."}]), "I cannot.", "refusal"),
        (
            answer([{"type": "text", "text": "so far"}, {"type": "refusal", "refusal": "I cannot."}]),
            "so far\n\nI cannot.",
            "refusal",
        ),
        (answer("no", refusal=None), "no", "end_turn"),
    ],
)
def test_a_refusal_or_a_filter_is_a_success_that_says_so(body: Any, text: str, reason: str) -> None:
    assert choice(body) == Choice(text, reason)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ("stop", "end_turn"),
        ("eos_token", "end_turn"),
        ("STOP", "end_turn"),
        (None, "end_turn"),
        ("length", "max_tokens"),
    ],
)
def test_other_names_of_a_finish_reason_are_known(told: Any, reason: str) -> None:
    assert choice(answer("x", told)).stop_reason == reason


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (answer(None), "its content is null"),
        (answer(None, reasoning_content="hm"), "only reasoning, which was not requested"),
        ({"choices": [{"message": {}, "finish_reason": "stop"}]}, "its content is null"),
        (answer("", "tool_calls"), "it has no tool call"),
        (answer("x", "abort"), "its finish_reason 'abort' is unknown"),
        (answer("x", {"of": None}), 'its finish_reason {"of": null} is unknown'),
        (answer("x", tool_calls=[CALL]), "the request has no tools"),
        ({"choices": []}, "it has no choices"),
        ({"choices": [answer("a")["choices"][0]] * 2}, "it has 2 choices instead of 1"),
        (b'data: {"choices":[{"delta":{"content":"x"}}]}\n\ndata: [DONE]\n\n', "an event stream"),
        (b'{"choices": [{"mess', "it is not JSON"),
    ],
)
def test_what_is_no_answer_spends_an_attempt_and_says_why(body: Any, words: str) -> None:
    assert words in odd(body)


def test_content_that_is_null_is_an_answer_where_something_else_is() -> None:
    assert choice(answer(None, "length")) == Choice("", "max_tokens")
    assert choice(answer(None, reasoning_content="hm"), ExpectedAnswer(is_thinking=True)).thinking == "hm"
    assert choice(answer(None, tool_calls=[CALL]), TOOLS).stop_reason == "tool_use"
    assert choice(answer("")) == Choice("", "end_turn")


def test_arguments_that_are_not_json_are_named_and_why() -> None:
    cut = CALL | {"function": {"name": "look", "arguments": '{"city": "Be'}}
    assert "the arguments of its call of 'look' are not JSON." in odd(answer(None, tool_calls=[cut]), TOOLS)
    assert "max_tokens cut them off. Raise max_tokens." in odd(answer(None, "length", tool_calls=[cut]), TOOLS)


def test_a_completion_without_text_is_none_and_a_filtered_one_says_so() -> None:
    raw = ExpectedAnswer(kind="completion")
    assert choice({"choices": [{"text": "so", "finish_reason": "content_filter"}]}, raw).stop_reason == "content_filter"
    assert "its content is null" in odd({"choices": [{"text": None, "finish_reason": "stop"}]}, raw)


def test_each_choice_that_was_asked_for_comes_in_order() -> None:
    two = [answer(text)["choices"][0] | {"index": index} for index, text in ((1, "b"), (0, "a"))]
    found = read({"choices": two}, ExpectedAnswer(num_choices=2))
    assert isinstance(found, Completion)
    assert [one.text for one in found.choices] == ["a", "b"]
    assert "it has 2 choices instead of 3" in odd({"choices": two}, ExpectedAnswer(num_choices=3))
    request = Request(
        custom_id="a",
        messages=(),
        sampling=Sampling(max_tokens=1, num_choices=3),
        raw=Raw(kind="completion", inputs=("x",)),
    )
    assert expected_answer(request).num_choices == 3


@pytest.mark.parametrize(
    "usage",
    [
        *(None, {}, "3", [3], {"prompt_tokens": 3}, {"total_tokens": 5}),
        {"prompt_tokens": 3, "completion_tokens": None},
        {"prompt_tokens": True, "completion_tokens": 2},
        {"prompt_tokens": float("nan"), "completion_tokens": 2},
    ],
)
def test_usage_that_is_not_told_is_unknown_and_not_0(usage: Any) -> None:
    for body in (answer("x") | {"usage": usage}, {"choices": answer("x")["choices"]}):
        found = read(body)
        assert isinstance(found, Completion)
        assert found.usage == Usage(unknown=1)


def test_usage_is_known_by_its_counts_whatever_its_details() -> None:
    told = {"prompt_tokens": 3.0, "completion_tokens": 0, "prompt_tokens_details": {"cached_tokens": 9}}
    found = read(answer("") | {"usage": told})
    assert isinstance(found, Completion)
    assert found.usage == Usage(input_tokens=3, cached_tokens=3)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"message": "no", "code": 400}, 400),
        ({"message": "no", "code": "413"}, 413),
        ({"message": "no", "type": "invalid_request_error", "code": "context_length_exceeded"}, 400),
        ({"message": "no", "type": "NotFoundError"}, 404),
        ({"message": "no", "status": 422}, 422),
    ],
)
def test_an_error_with_status_200_is_read_as_with_its_own(error: Any, status: int) -> None:
    bodies = ({"error": error}, {"object": "error"} | error, {"choices": [{"error": error, "finish_reason": "error"}]})
    for body in bodies:
        found = read(body)
        assert isinstance(found, Failure)
        assert (found.message, found.http_status) == ("The endpoint answered 200 with an error: no", status)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"message": "no", "code": 400}, 400),
        ({"detail": "no", "status": 404}, 404),
        ({"detail": {"message": "no", "code": 413}}, 413),
        ({"errors": [{"message": "no", "code": "422"}]}, 422),
    ],
)
def test_an_error_of_another_shape_keeps_its_words(body: Any, status: int) -> None:
    for good in (200, 201):
        found = read(body, status=good)
        assert isinstance(found, Failure)
        assert (found.message, found.http_status) == (f"The endpoint answered {good} with an error: no", status)


@pytest.mark.parametrize("body", [{"detail": "no"}, {"message": "no"}, {"errors": ["no"]}])
def test_an_error_of_another_shape_without_a_status_spends_an_attempt(body: Any) -> None:
    assert odd(body) == "The endpoint answered 200 with an error: no"


def test_a_body_of_another_api_is_not_taken_for_an_error() -> None:
    assert "it has no 'choices'" in odd({"model": "m", "message": {"role": "assistant", "content": "x"}})


def test_every_good_status_is_one() -> None:
    found = read(answer("x"), status=201)
    assert isinstance(found, Completion)
    found = read(b"", status=204)
    assert isinstance(found, Failed)
    assert "it is not JSON" in found.message


def test_an_error_with_status_200_that_may_be_over_is_tried_again() -> None:
    assert isinstance(read({"error": {"message": "slow down", "type": "rate_limit_exceeded"}}), Throttled)
    assert isinstance(read({"error": {"message": "busy", "type": "overloaded_error"}}), Unserved)
    for body in (
        {"error": {"message": "overloaded"}},
        {"error": "overloaded"},
        {"error": {"message": "overloaded", "code": 1}},
    ):
        found = read(body)
        assert isinstance(found, Failed)
        assert found.message == "The endpoint answered 200 with an error: overloaded"
    assert choice(answer('an "error"') | {"error": None}).text == 'an "error"'


FLOATS = (0.5, -2.0)
PACKED = base64.b64encode(struct.pack("<2f", *FLOATS)).decode()
VECTORS = ExpectedAnswer(kind="embedding", num_vectors=1)


@pytest.mark.parametrize("given", [list(FLOATS), PACKED])
def test_vectors_have_the_encoding_that_was_asked_for(given: Any) -> None:
    body = {"data": [{"index": 0, "embedding": given}], "usage": {"prompt_tokens": 1, "total_tokens": 1}}
    for is_base64, vector in ((False, FLOATS), (True, PACKED)):
        found = read(body, replace(VECTORS, is_base64=is_base64, dimensions=2))
        assert isinstance(found, Completion)
        assert (found.vectors, found.usage) == ((vector,), Usage(input_tokens=1))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([{"index": 0, "embedding": "no base64!"}], "not base64 of float32 numbers"),
        ([{"index": 0, "embedding": "AAA="}], "not base64 of float32 numbers"),
        ([{"index": 0, "embedding": base64.b64encode(struct.pack("<f", float("inf"))).decode()}], "not finite"),
        ([{"index": 0, "embedding": [0.1, float("nan")]}], "not finite"),
        ([{"index": 0, "embedding": [0.1]}], "a vector of 1 numbers instead of 2"),
        ([{"index": 1, "embedding": [0.1, 0.2]}], "the indexes of its vectors"),
        ([{"index": 0, "embedding": None}], "a type that"),
        ([], "0 vectors instead of 1"),
    ],
)
def test_vectors_that_are_not_what_was_asked_for_spend_an_attempt(data: Any, words: str) -> None:
    assert words in odd({"data": data}, replace(VECTORS, dimensions=2))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_spend_an_attempt(number: float) -> None:
    score = {"data": [{"index": 0, "score": number}]}
    assert "not finite" in odd(score, replace(VECTORS, kind="score"))
    assert "not finite" in odd({"results": [{"index": 0, "relevance_score": number}]}, replace(VECTORS, kind="rerank"))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            {"detail": [{"type": "missing", "loc": ["body", "x", 0], "msg": "field required"}]},
            "body.x.0: field required",
        ),
        ({"detail": [{"loc": ["body"], "msg": "a"}, {"msg": "b"}]}, "body: a; b"),
        ({"error": {"message": {"why": None}}}, '{"why": null}'),
        ({"detail": [{"why": True}, None]}, '[{"why": true}, null]'),
        ({"error": [{"why": True}]}, '{"error": [{"why": true}]}'),
        ({"error": {"message": "so", "code": None}}, "so"),
    ],
)
def test_an_endpoints_words_are_its_own_and_never_pythons(body: Any, words: str) -> None:
    assert endpoints_words(json.dumps(body).encode()) == words
