"""What engines make of options: how a prompt is cut, how a turn is continued, and what a chat template gets."""

from typing import Any

import pytest
from msgspec.structs import replace

from batchfile.engine.fit import check_options, compared, truncated
from batchfile.engine.prompts import template_arguments
from batchfile.engine.vllm.options import IGNORED, check_prompt_logprobs, guide_of
from batchfile.errors import InvalidRequest
from batchfile.request_options import Guide, Options
from batchfile.types import Message, Raw, Request, Sampling

ASKED, BEGUN = Message("user", "Count."), Message("assistant", "One,")


def request(*messages: Message, **options: Any) -> Request:
    made = Options(sent={}, **options)
    return Request(custom_id="a", messages=messages or (ASKED,), sampling=Sampling(max_tokens=5), options=made)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [1, 2, 3, 4]),
        ({"truncate_prompt_tokens": 9}, [1, 2, 3, 4]),
        ({"truncate_prompt_tokens": 2}, [3, 4]),
        ({"truncate_prompt_tokens": 2, "truncation_side": "right"}, [1, 2]),
        ({"truncate_prompt_tokens": -1}, [2, 3, 4]),  # one of the four tokens of this model is for the answer
        ({"truncate_prompt_tokens": 0}, []),
    ],
)
def test_a_prompt_is_cut_on_the_side_that_the_request_or_the_tokenizer_says(
    options: dict[str, Any], kept: list[int]
) -> None:
    assert truncated(request(**options), [1, 2, 3, 4], 4, "left") == kept


@pytest.mark.parametrize(
    ("messages", "options", "ending"),
    [
        ((ASKED,), {}, {}),  # the default for such turns
        ((ASKED, BEGUN), {}, {}),
        ((ASKED, BEGUN), {"add_generation_prompt": True}, (True, False)),
        ((ASKED, BEGUN), {"continue_final_message": False}, (True, False)),
        ((ASKED, BEGUN), {"continue_final_message": True}, (False, True)),
        ((ASKED,), {"continue_final_message": True}, (False, True)),
        ((ASKED,), {"add_generation_prompt": False}, (False, False)),
    ],
)
def test_the_last_turn_is_continued_or_not_as_the_request_says(
    messages: tuple[Message, ...], options: dict[str, Any], ending: Any
) -> None:
    names = ("add_generation_prompt", "continue_final_message")
    made = request(*messages, **options)
    assert template_arguments(made) == dict(zip(names, ending, strict=False))
    if ending:
        assert made.is_continuation is ending[1]


def test_a_chat_template_gets_what_vllms_api_would_give_it() -> None:
    assert template_arguments(request(reasoning_effort="low", verbosity="high", documents=[{"text": "x"}])) == {
        "enable_thinking": True,
        "reasoning_effort": "low",
        "verbosity": "high",
        "documents": [{"text": "x"}],
    }
    assert template_arguments(request(reasoning_effort="none"))["enable_thinking"] is False
    asked = request(reasoning_effort="low", chat_template_kwargs={"enable_thinking": False, "own": 1})
    assert template_arguments(asked) == {"enable_thinking": False, "reasoning_effort": "low", "own": 1}


def test_what_only_endpoints_support_is_rejected_by_name() -> None:
    with pytest.raises(InvalidRequest, match=r"^suffix: only an endpoint"):
        check_options(request(only_endpoints=("suffix",)))


def test_texts_are_compared_by_the_cosine_of_their_vectors() -> None:
    vectors = [(1.0, 0.0), (0.0, 2.0), (3.0, 0.0), (1.0, 1.0)]
    score = Raw(kind="score", inputs=("a", "b", "c", "d"), num_queries=1)
    assert compared(score, vectors) == ((0.0,), (1.0,), (pytest.approx(0.5**0.5),))
    paired = Raw(kind="score", inputs=("a", "b", "c", "d"), num_queries=2)
    assert compared(paired, vectors) == ((1.0,), (pytest.approx(0.5**0.5),))
    nearest = Raw(kind="rerank", inputs=("a", "b", "c", "d"), num_queries=1, top_n=2)
    assert [index for index, _ in compared(nearest, vectors)] == [1, 2]
    assert compared(score, [(0.0, 0.0)] * 4) == ((0.0,), (0.0,), (0.0,)), "a vector without a direction"


@pytest.mark.parametrize(
    ("is_raw", "options", "key"),
    [
        (False, {"prompt_logprobs": 0}, "prompt_logprobs"),
        (True, {"prompt_logprobs": 1}, "prompt_logprobs"),
        (True, {"echo": True, "logprobs": 0}, "echo"),
        (True, {"echo": True}, None),
        (True, {"logprobs": 2}, None),
        (False, {"logprobs": 2, "echo": True}, None),
    ],
)
def test_log_probabilities_of_a_prompt_are_not_for_a_model_with_adapters(
    is_raw: bool, options: dict[str, Any], key: str | None
) -> None:
    """With them, several requests at once end vLLM's engine."""
    asked = request(**options)
    asked = replace(asked, raw=Raw(kind="completion", inputs=("Count.",))) if is_raw else asked
    check_prompt_logprobs(asked, has_adapters=False)
    if key is None:
        check_prompt_logprobs(asked, has_adapters=True)
    else:
        with pytest.raises(InvalidRequest, match=f"^{key}: .* LoRA adapters"):
            check_prompt_logprobs(asked, has_adapters=True)


@pytest.mark.parametrize("name", IGNORED)
def test_what_vllm_ignores_of_a_guide_is_rejected(name: str) -> None:
    value = " ?" if name == "whitespace_pattern" else True
    with pytest.raises(InvalidRequest, match=f"^{name}: vLLM ignores it in a request; remove it"):
        guide_of(request(guide=Guide(**{name: value})))
