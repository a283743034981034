"""What a request may ask for besides text: the Python result has it as the native line does."""

import json

import pytest

from batchfile.client.results import Result, read_result

TOKEN = {"token": "x", "logprob": -0.5, "bytes": [120], "top_logprobs": [{"token": "y", "logprob": -1.0}]}
SAID = {"content": [{"type": "text", "text": "x"}]}
LINE = {"custom_id": "a", "status": "succeeded", "message": SAID, "stop_reason": "end_turn", "model": "m"}
LINE |= {"usage": {"input_tokens": 1, "output_tokens": 1, "cached_tokens": 0}, "error": None}
ASKED = {"logprobs": [TOKEN], "token_ids": [5]}


def read(**more: object) -> Result:
    return read_result(json.dumps(LINE | more).encode())


def test_one_answer_has_its_logprobs_and_token_ids() -> None:
    (choice,) = read(**ASKED).choices
    assert choice.token_ids == (5,)
    assert choice.logprobs is not None
    (token,) = choice.logprobs
    assert (token.token, token.logprob, token.bytes) == ("x", -0.5, (120,))
    assert [(top.token, top.logprob) for top in token.top_logprobs] == [("y", -1.0)]


def test_each_of_several_answers_has_its_own() -> None:
    several = [{"message": SAID, "stop_reason": "end_turn", "token_ids": [n]} for n in (1, 2)]
    assert [choice.token_ids for choice in read(choices=several).choices] == [(1,), (2,)]


def test_a_result_has_what_was_asked_about_the_prompt() -> None:
    first, second = None, {"7": {"logprob": -2.0, "rank": 3, "decoded_token": "z"}}
    result = read(prompt_logprobs=[first, second], prompt_token_ids=[1, 7])
    assert result.prompt_logprobs == [first, second]
    assert result.prompt_token_ids == (1, 7)


def test_a_result_names_its_media() -> None:
    (one,) = read(media=[{"type": "image", "sha256": "ab"}]).media
    assert (one.type, one.sha256) == ("image", "ab")


@pytest.mark.parametrize("name", ["prompt_logprobs", "prompt_token_ids"])
def test_what_was_not_asked_is_none(name: str) -> None:
    assert getattr(read(), name) is None
    assert read().choices[0].logprobs is None
    assert read().media == ()
