"""Native result lines as Anthropic's: exact keys, derived ids, and nothing that its clients stumble over."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchfile.errors import InvalidRequest
from batchfile.types import Choice, Completion, Defaults, Failure, Outcome, Usage
from tests.helpers.lines import ERROR_TYPES, anthropic_lines, encode_result, parse_request

BATCH = "msgbatch_0123456789abcdefghijABCD"
DONE = Completion(
    choices=(Choice('## "Report"\n\u2028 \U0001f680', "end_turn"),),
    usage=Usage(input_tokens=30, output_tokens=7, cached_tokens=12),
)


def rendered(*outcomes: Outcome, custom_id: str | None = "a", batch_id: str = BATCH) -> list[dict[str, Any]]:
    native = b"".join(encode_result(custom_id, outcome, "org/model") + b"\n" for outcome in outcomes)
    body = b"".join(anthropic_lines([native], batch_id))
    assert body.endswith(b"\n")
    return [json.loads(line) for line in body[:-1].split(b"\n")]


def test_a_success_is_a_whole_message() -> None:
    (line,) = rendered(DONE)
    assert line == {
        "custom_id": "a",
        "result": {
            "type": "succeeded",
            "message": {
                "id": "msg_0123456789abcdefghijABCD_0",
                "type": "message",
                "role": "assistant",
                "model": "org/model",
                "content": [{"type": "text", "text": '## "Report"\n\u2028 \U0001f680', "citations": None}],
                "stop_reason": "end_turn",
                "stop_sequence": None,
                "stop_details": None,
                "container": None,
                "context_management": None,
                "diagnostics": None,
                "input_transformations": None,
                "usage": {
                    "input_tokens": 18,
                    "output_tokens": 7,
                    "cache_read_input_tokens": 12,
                    "cache_creation_input_tokens": 0,
                    "cache_creation": None,
                    "fallback_credit": None,
                    "inference_geo": None,
                    "iterations": None,
                    "output_tokens_details": None,
                    "server_tool_use": None,
                    "service_tier": "batch",
                    "speed": None,
                },
            },
        },
    }


def test_the_stop_sequence_is_named_and_an_empty_answer_counts_a_token() -> None:
    (line,) = rendered(Completion(choices=(Choice("", "stop_sequence", "STOP"),), usage=Usage(input_tokens=3)))
    message = line["result"]["message"]
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "STOP")
    assert message["usage"]["output_tokens"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reason", "explanation"),
    [
        ("refusal", "The model refused to answer."),
        ("content_filter", "The endpoint's content filter stopped the answer."),
    ],
)
def test_a_refusal_and_a_filter_are_anthropics_refusal(reason: Any, explanation: str) -> None:
    (line,) = rendered(Completion(choices=(Choice("so far", reason),), usage=Usage(unknown=1)))
    message = line["result"]["message"]
    assert [block["text"] for block in message["content"]] == ["so far"]
    assert message["stop_reason"] == "refusal"
    assert message["stop_details"] == {"type": "refusal", "category": None, "explanation": explanation}
    usage = message["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["is_unknown"]) == (0, 0, True)
    from anthropic.types.messages import MessageBatchIndividualResponse  # takes a second

    MessageBatchIndividualResponse.model_validate_json(json.dumps(line), strict=True)


def test_an_error_is_nested_twice_and_of_a_type_that_the_clients_know() -> None:
    types = ["invalid_request_error", "rate_limit_error", "model_error", "storage_error", "runner_crash"]
    lines = rendered(*(Failure(type=kind, message="why") for kind in types))
    for kind, line in zip(types, lines, strict=True):
        known = kind if kind in ERROR_TYPES else "api_error"
        error = {"type": "error", "error": {"type": known, "message": "why"}, "request_id": None}
        assert line == {"custom_id": "a", "result": {"type": "errored", "error": error}}


@pytest.mark.parametrize("status", ["canceled", "expired"])
def test_what_did_not_run_is_its_type_alone(status: str) -> None:
    failure = Failure(type=status, message="why", status=status)  # type: ignore[arg-type]
    assert rendered(failure) == [{"custom_id": "a", "result": {"type": status}}]


def test_a_custom_id_that_could_not_be_read_is_an_empty_string() -> None:
    (line,) = rendered(Failure(type="invalid_request_error", message="why"), custom_id=None)
    assert line["custom_id"] == ""


def test_of_several_choices_the_first_is_the_message() -> None:
    several = Completion(choices=(Choice("one", "end_turn"), Choice("two", "max_tokens")), usage=Usage())
    (line,) = rendered(several)
    assert [block["text"] for block in line["result"]["message"]["content"]] == ["one"]


@pytest.mark.slow
@given(texts=st.lists(st.text(), min_size=1, max_size=8), cuts=st.lists(st.integers(0, 3000), max_size=4))
def test_chunks_cut_anywhere_give_the_same_whole_lines_and_ids(texts: list[str], cuts: list[int]) -> None:
    native = b"".join(
        encode_result(text, Completion(choices=(Choice(text, "end_turn"),), usage=Usage()), "m") + b"\n"
        for text in texts
    )
    places = sorted({0, len(native), *(cut for cut in cuts if cut < len(native))})
    chunks = list(anthropic_lines([native[a:b] for a, b in pairwise(places)], BATCH))
    assert b"".join(chunks) == b"".join(anthropic_lines([native], BATCH))
    assert all(chunk.endswith(b"\n") for chunk in chunks)
    body = b"".join(chunks)
    assert b"\r" not in body
    assert b"\n\n" not in body
    messages = [json.loads(line)["result"]["message"] for line in body[:-1].split(b"\n")]
    assert [message["content"][0]["text"] for message in messages] == texts
    assert [message["id"].rpartition("_")[2] for message in messages] == [str(n) for n in range(len(texts))]


def test_max_tokens_has_no_default_where_the_batch_says_so() -> None:
    line = b'{"custom_id": "a", "params": {"messages": [{"role": "user", "content": "Hi"}]}}'
    strict = Defaults(temperature=1.0, needs_max_tokens=True)
    with pytest.raises(InvalidRequest, match=r"params\.max_tokens: is missing"):
        parse_request(line, strict)
    assert parse_request(line, Defaults()).sampling.max_tokens == 2048
    given = parse_request(line.replace(b'"messages"', b'"max_tokens": 5, "messages"'), strict).sampling
    assert (given.max_tokens, given.temperature) == (5, 1.0)
