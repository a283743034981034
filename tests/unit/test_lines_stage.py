"""The stage format: exactly the contract's keys, whatever the chunks."""

import json

from hypothesis import given
from hypothesis import strategies as st

from batchfile.types import Choice, Completion, Failure, Outcome, Usage
from tests.helpers.lines import encode_result, processing_status, stage_document, stage_lines, timestamp

DONE = Completion(
    choices=(Choice('## Report\n\n"quoted" \u2028 \U0001f680', "end_turn"),),
    usage=Usage(input_tokens=512, output_tokens=1024, cached_tokens=128),
)
OUTCOMES: list[Outcome] = [
    DONE,
    Failure(type="model_error", message="Output validation failed"),
    Failure(status="canceled", type="canceled", message="The batch was canceled."),
    Failure(status="expired", type="expired", message="The batch expired before this request ran."),
]

names = st.text(min_size=1, max_size=30).filter(lambda text: not any("\ud800" <= char <= "\udfff" for char in text))
results = st.lists(st.tuples(names, st.sampled_from(OUTCOMES)), max_size=20)


def native(pairs: list[tuple[str, Outcome]]) -> bytes:
    return b"".join(encode_result(custom_id, outcome, "m") + b"\n" for custom_id, outcome in pairs)


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def test_a_result_has_exactly_the_contracts_keys() -> None:
    (line,) = stage_lines([native([("lead_1_email", DONE)])])
    assert json.loads(line) == {
        "custom_id": "lead_1_email",
        "status": "succeeded",
        "message": {"content": [{"type": "text", "text": DONE.choices[0].text}]},
        "usage": {"input_tokens": 512, "output_tokens": 1024},
        "error": None,
    }


def test_what_was_canceled_or_expired_is_errored_with_that_type() -> None:
    (lines,) = stage_lines([native([(str(number), outcome) for number, outcome in enumerate(OUTCOMES[1:])])])
    found = [json.loads(line) for line in lines.splitlines()]
    assert [line["status"] for line in found] == ["errored"] * 3
    assert [line["error"]["type"] for line in found] == ["model_error", "canceled", "expired"]
    assert all(line["message"] is None and line["usage"] is None for line in found)


@given(pairs=results, size=st.integers(1, 700))
def test_the_document_holds_every_result_in_order_whatever_the_chunks(
    pairs: list[tuple[str, Outcome]], size: int
) -> None:
    document = json.loads(b"".join(stage_document(cut(native(pairs), size))))
    assert list(document) == ["results"]
    assert [line["custom_id"] for line in document["results"]] == [custom_id for custom_id, _ in pairs]
    lines = b"".join(stage_lines(cut(native(pairs), size))).splitlines()
    assert [json.loads(line) for line in lines] == document["results"]


def test_what_a_model_thought_is_left_out_and_text_comes_first() -> None:
    thoughtful = Completion(choices=(Choice("yes", "end_turn", thinking='"hm"'),), usage=Usage(output_tokens=3))
    cut = Completion(choices=(Choice("", "max_tokens", thinking="hm"),), usage=Usage())
    plain = Completion(choices=(Choice('{"content":[{"type":"thinking",', "end_turn"),), usage=Usage())
    whole = native([("a", thoughtful), ("b", cut), ("c", plain)])
    lines = [json.loads(line) for line in b"".join(stage_lines([whole])).splitlines()]
    texts = ["yes", "", '{"content":[{"type":"thinking",']
    assert [line["message"] for line in lines] == [{"content": [{"type": "text", "text": text}]} for text in texts]


def test_a_refusal_and_a_filter_are_errored_and_say_why() -> None:
    refused = Completion(choices=(Choice("I cannot.", "refusal", thinking="hm"),), usage=Usage(output_tokens=3))
    filtered = Completion(choices=(Choice("so far", "content_filter"),), usage=Usage(output_tokens=3))
    empty = Completion(choices=(Choice("", "content_filter"),), usage=Usage(unknown=1))
    whole = native([("a", refused), ("b", filtered), ("c", empty)])
    lines = [json.loads(line) for line in b"".join(stage_lines([whole])).splitlines()]
    assert all(list(line) == ["custom_id", "status", "message", "usage", "error"] for line in lines)
    assert all((line["status"], line["message"], line["usage"]) == ("errored", None, None) for line in lines)
    stopped = "The endpoint's content filter stopped the answer"
    assert [line["error"] for line in lines] == [
        {"type": "refusal", "message": "The model refused to answer: I cannot."},
        {"type": "content_filter", "message": f"{stopped}: so far"},
        {"type": "content_filter", "message": f"{stopped}."},
    ]


def test_a_usage_that_is_not_known_is_null_and_an_error_has_two_keys() -> None:
    unknown = Completion(choices=(Choice("yes", "end_turn"),), usage=Usage(unknown=1))
    failure = Failure(type="invalid_request_error", message="why", http_status=413)
    lines = [
        json.loads(line) for line in b"".join(stage_lines([native([("a", unknown), ("b", failure)])])).splitlines()
    ]
    assert lines[0]["usage"] == {"input_tokens": None, "output_tokens": None}
    assert lines[1]["error"] == {"type": "invalid_request_error", "message": "why"}


def test_a_batch_without_results_is_an_empty_list() -> None:
    assert b"".join(stage_document([])) == b'{"results":[]}'


def test_the_states_of_a_batch_come_in_one_order() -> None:
    order = [("planning", 0), ("open", 0), ("open", 1), ("ending", 0), ("ended", 0)]
    assert [processing_status(state, num) for state, num in order] == [
        "collected",
        "submitted",
        "processing",
        "processing",
        "ended",
    ]


def test_times_are_utc_in_whole_seconds() -> None:
    assert timestamp(1736244000.9) == "2025-01-07T10:00:00Z"
