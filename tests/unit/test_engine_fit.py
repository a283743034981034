"""How many tokens a request may generate."""

import pytest

from batchfile.engine.fit import check_fit, fitting_max_tokens
from batchfile.errors import InvalidRequest
from batchfile.types import Raw, Request, Sampling


def test_what_fits_exactly_is_taken():
    assert fitting_max_tokens(Sampling(max_tokens=28), 100, 128) == 28


def test_a_max_tokens_that_was_given_and_does_not_fit_is_refused_with_both_numbers():
    with pytest.raises(InvalidRequest, match=r"100 tokens plus max_tokens 29 exceeds .* max_model_len 128"):
        fitting_max_tokens(Sampling(max_tokens=29), 100, 128)


def test_a_max_tokens_that_was_not_given_is_lowered():
    assert fitting_max_tokens(Sampling(max_tokens=2048, is_max_tokens_given=False), 100, 128) == 28


def test_a_prompt_that_leaves_no_room_is_refused():
    with pytest.raises(InvalidRequest, match=r"128 tokens leaves no room .* max_model_len 128"):
        fitting_max_tokens(Sampling(max_tokens=2048, is_max_tokens_given=False), 128, 128)


def test_of_an_embedding_each_input_must_fit_by_itself():
    given = Raw(kind="embedding", inputs=("a", "b"))
    one = Request(custom_id="r", messages=(), raw=given, sampling=Sampling(max_tokens=0))
    check_fit(one, [128, 128], 128)
    with pytest.raises(InvalidRequest, match=r"Input 1 has 129 tokens, which exceeds .* max_model_len 128"):
        check_fit(one, [5, 129], 128)


def test_a_raw_prompt_must_leave_room_as_a_conversation_must():
    given = Raw(kind="completion", inputs=("a",))
    with pytest.raises(InvalidRequest, match="100 tokens plus max_tokens 29"):
        check_fit(Request(custom_id="r", messages=(), raw=given, sampling=Sampling(max_tokens=29)), [100], 128)
