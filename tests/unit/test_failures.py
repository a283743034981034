"""Failures are grouped by reason, whatever their messages contain, in bounded memory."""

import json
from typing import Literal

import pytest

from batchfile.lines import failures
from batchfile.lines.failures import GROUPS_MAX, FailureTally, advice_of, merged, reason_of, tally_of, with_advice
from batchfile.types import Failure, FailureGroup
from tests.helpers.lines import FinishedLine, encode_result

MESSAGES = {
    "line 7: max_tokens: 9000 exceeds the limit of 8192": "max_tokens: … exceeds the limit of …",
    "requests[12].custom_id: 'lead_a-1' was used by requests[3]; make it unique": (
        "custom_id: … was used by requests[…]; make it unique"
    ),
    "requests[2]: is not valid JSON at column 41": "is not valid JSON at column …",
    'model: "mistral-7b" is unknown; use one of llama, mistral': "model: … is unknown; use one of llama, mistral",
    "the lease 0f5e9c1b-77aa-4b1e-9a06-0d1f1ad6d1aa was lost": "the lease … was lost",
    "the key 'its' of the model's answer isn't 5.": "the key … of the model's answer isn't ….",
    "[1, 2, 3] is not of type 'string'": "[…] is not of type …",
    "a token such as AbCdEfGhIjKlMnOpQrStUvWxYzAbCdEfGhIj leaks": "a token such as … leaks",
    "two\nlines,\ta tab and \x1b[2J\u202ea bell\x07": "two lines, a tab and [… a bell",
    "": "",
}


def finished(line: int, message: str, type: str = "model_error", **more: int) -> FinishedLine:
    failure = Failure(type=type, message=message, **more)  # type: ignore[arg-type]
    return FinishedLine(line, "errored", encode_result(f"r{line}", failure, ""))


@pytest.mark.parametrize("message", MESSAGES)
def test_a_reason_is_the_message_without_what_differs(message: str) -> None:
    found = reason_of("model_error", message)
    assert found == MESSAGES[message]
    assert found.isprintable()


def test_a_message_is_reduced_once_wherever_its_request_is() -> None:
    before = failures._reason.cache_info().misses
    found = {reason_of("invalid_request_error", f"line {n}: is not like any other message") for n in range(100)}
    assert found == {"is not like any other message"}
    assert failures._reason.cache_info().misses == before + 1


def test_the_answer_of_a_model_that_refuses_is_not_part_of_the_reason() -> None:
    assert reason_of("refusal", "The model refused to answer: I am sorry, Ms. Jones") == "The model refused to answer"
    assert reason_of("content_filter", "The endpoint's content filter stopped the answer.").endswith("answer.")


@pytest.mark.parametrize("char", ["a", "\n", "'", '"', "`", "9", "…", "-"])
def test_ten_megabytes_of_text_become_a_short_reason(char: str) -> None:
    assert len(reason_of("model_error", char * 10_000_000)) <= 200


def test_groups_have_a_count_and_the_first_example() -> None:
    lines = [
        finished(0, "Output 1 is bad"),
        finished(3, "Output 2 is bad"),
        finished(4, "other", "invalid_request_error"),
    ]
    tally = tally_of([*lines, FinishedLine(5, "succeeded", b"{}")], 101)
    assert tally.num_rejected == 1
    assert tally.top() == (
        FailureGroup(
            type="model_error",
            message="Output … is bad",
            num_requests=2,
            line=101,
            custom_id="r0",
            example="Output 1 is bad",
        ),
        FailureGroup(
            type="invalid_request_error", message="other", num_requests=1, line=105, custom_id="r4", example="other"
        ),
    )


def test_an_example_has_the_beginning_of_its_own_message() -> None:
    tally = tally_of([finished(0, "requests[3]: role: must be 'user',\n got 'usr'"), finished(1, "x " * 5_000)], 1)
    assert [group.example for group in tally.top()] == ["role: must be 'user', got 'usr'", "x " * 99 + "x…"]
    assert merged(tally.top())[0].example == "role: must be 'user', got 'usr'"


def test_the_statuses_of_an_endpoint_are_told_apart() -> None:
    tally = tally_of(
        [finished(0, "it answered 500", http_status=500), finished(1, "it answered 502", http_status=502)], 1
    )
    assert [group.http_status for group in tally.top()] == [500, 502]


def test_of_20_000_reasons_the_frequent_ones_are_kept() -> None:
    tally = FailureTally()
    letters = [chr(97 + n) for n in range(26)]
    for n in range(20_000):
        word = "".join(letters[n // 26**k % 26] for k in range(4))
        tally.add_result(finished(n, "frequent" if n % 3 == 0 else f"rare {word}").result, n)
    top = tally.top()
    assert len(top) == GROUPS_MAX
    assert (top[0].message, top[0].num_requests) == ("frequent", 6_667)
    assert len(tally._groups) <= 1_000


def test_groups_of_several_shards_are_added_up() -> None:
    one = tally_of([finished(0, "a"), finished(1, "b")], 1).top()
    two = tally_of([finished(0, "b")], 51).top()
    assert [(group.message, group.num_requests, group.line) for group in merged(one, two)] == [("b", 2, 2), ("a", 1, 1)]


def test_a_line_of_the_reasons_file_says_which_request_and_why() -> None:
    tally = FailureTally()
    line = json.loads(tally.add_result(finished(4, "it answered 500\n", http_status=500).result, 5))
    assert line == {
        "line": 5,
        "custom_id": "r4",
        "status": "errored",
        "type": "model_error",
        "message": "it answered 500\n",
        "http_status": 500,
    }


@pytest.mark.parametrize("type", ["invalid_request_error", "model_error", "canceled", "of_a_later_version"])
def test_every_type_has_an_advice(type: Literal["canceled"]) -> None:
    (group,) = with_advice(tally_of([finished(0, "why", type)], 1).top())
    assert group.advice == advice_of(type) != ""
    assert group.advice[-1] == "."
