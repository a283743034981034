"""`params` lines into requests, and what a bad one is told."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchfile.errors import InvalidRequest
from batchfile.types import Defaults, Message, Request, Sampling
from tests.helpers.lines import decode_envelope, find_problems, parse_request

HI = [{"role": "user", "content": "hi"}]


TOOL = {"name": "look", "input_schema": {"type": "object"}}
FORM = {"type": "json_schema", "schema": {"type": "object"}}


def line(**params: Any) -> bytes:
    return json.dumps({"custom_id": "a", "params": {"messages": HI, **params}}).encode()


def parsed(defaults: Defaults | None = None, **params: Any) -> Request:
    return parse_request(line(**params), defaults or Defaults())


def refusal(data: bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse_request(data, Defaults())
    assert caught.value.type == "invalid_request_error"
    assert find_problems(data)
    return str(caught.value)


def turns(*pairs: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in pairs]


def test_the_least_request_gets_the_stage_contracts_defaults() -> None:
    assert parsed() == Request(
        custom_id="a",
        messages=(Message("user", "hi"),),
        sampling=Sampling(max_tokens=2048, is_max_tokens_given=False, temperature=0.2),
    )


def test_defaults_fill_only_what_is_not_said() -> None:
    defaults = Defaults(max_tokens=7, temperature=0.9, model="m")
    filled = parsed(defaults)
    assert (filled.sampling.max_tokens, filled.sampling.temperature, filled.model) == (7, 0.9, "m")
    said = parsed(defaults, max_tokens=9, temperature=0, model="n")
    assert (said.sampling.max_tokens, said.sampling.temperature, said.model) == (9, 0.0, "n")
    assert said.sampling.is_max_tokens_given
    assert not filled.sampling.is_max_tokens_given


def test_every_sampling_key_arrives() -> None:
    schema = {"type": "object", "properties": {"x": {"type": "string"}}}
    request = parsed(
        max_tokens=5,
        temperature=1,
        top_p=0.5,
        top_k=40,
        min_p=0.1,
        stop_sequences=["a", "\n"],
        seed=-3,
        presence_penalty=-2,
        frequency_penalty=2,
        repetition_penalty=1.1,
        output_config={"format": {"type": "json_schema", "schema": schema}, "effort": None},
    )
    assert request.sampling == Sampling(
        max_tokens=5,
        temperature=1.0,
        top_p=0.5,
        top_k=40,
        min_p=0.1,
        stop=("a", "\n"),
        seed=-3,
        presence_penalty=-2.0,
        frequency_penalty=2.0,
        repetition_penalty=1.1,
        json_schema=schema,
    )


@pytest.mark.parametrize("top_k", [0, -1])
def test_a_top_k_that_limits_nothing_replaces_the_default_of_the_model(top_k: int) -> None:
    assert parsed(top_k=top_k).sampling.top_k == top_k


def test_keys_of_the_hosted_service_and_keys_that_ask_for_nothing_are_ignored() -> None:
    assert (
        parsed(
            metadata={"user_id": "u"},
            service_tier="auto",
            cache_control={"type": "ephemeral"},
            stream=False,
            tools=[],
            tool_choice={"type": "none"},
            betas=[],
            compaction=None,
            context_management=None,
            fallbacks=[],
            container=None,
            inference_geo="global",
            speed="standard",
            output_format=None,
            temperature=None,
            stop_sequences=None,
        )
        == parsed()
    )


@pytest.mark.parametrize(
    ("params", "place"),
    [
        ({"output_config": {"effort": "least"}}, "params.output_config.effort: "),
        ({"thinking": {"type": "enabled", "budget_tokens": -1}}, "params.thinking.budget_tokens: "),
        ({"thinking": {"type": "enabled", "display": "omitted"}}, "params.thinking.display: "),
        ({"inference_geo": "us"}, "params.inference_geo: "),
        ({"speed": "fast"}, "params.speed: "),
        ({"container": "c1"}, "params.container: "),
        ({"tools": [TOOL | {"defer_loading": True}]}, r"params.tools\[0\].defer_loading: "),
        ({"tools": [TOOL | {"allowed_callers": ["code_execution_20250825"]}]}, r"params.tools\[0\].allowed_callers: "),
        ({"tools": [TOOL | {"input_examples": [{"a": 1}]}]}, r"params.tools\[0\].input_examples: "),
        (
            {"output_config": {"format": FORM}, "output_format": FORM | {"schema": {"type": "array"}}},
            "params.output_format: ",
        ),
    ],
)
def test_a_key_that_would_change_the_answer_is_rejected_by_name(params: dict[str, Any], place: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{place}"):
        parsed(**params)


def test_thinking_without_a_bound_of_its_own_is_served() -> None:
    assert parsed(thinking={"type": "enabled", "display": "summarized"}).is_thinking is True
    assert parsed(thinking={"type": "adaptive", "budget_tokens": None}).is_thinking is True


@pytest.mark.parametrize(("key", "value"), [("max_tokens", 100.0), ("top_k", 40.0), ("seed", -7.0)])
def test_a_whole_number_may_be_written_as_a_fraction(key: str, value: float) -> None:
    assert parsed(**{key: value}) == parsed(**{key: int(value)})
    for wrong in (value + 0.5, str(value), True):
        with pytest.raises(InvalidRequest, match=f"params.{key}: must be a whole number"):
            parsed(**{key: wrong})


def test_the_older_place_of_an_output_format_is_read_where_the_newer_one_is_empty() -> None:
    old = {"type": "json_schema", "schema": {"title": "old"}}
    assert parsed(output_format=old).sampling.json_schema == {"title": "old"}
    assert parsed(output_format=old, output_config={"effort": None}).sampling.json_schema == {"title": "old"}
    assert parsed(output_format=old, output_config={"format": old}).sampling.json_schema == {"title": "old"}


def test_system_text_leads_and_blocks_are_joined() -> None:
    blocks = [{"type": "text", "text": "one", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "two"}]
    request = parsed(system=blocks, messages=turns(("user", blocks)))
    assert request.messages == (Message("system", "one\n\ntwo"), Message("user", "one\n\ntwo"))


def test_system_turns_are_folded_into_the_one_that_leads() -> None:
    request = parsed(system="s", messages=turns(("system", "t"), ("user", "a"), ("system", "u"), ("user", "b")))
    assert request.messages == (Message("system", "s\n\nt\n\nu"), Message("user", "a\n\nb"))


def test_neighbours_of_one_role_are_joined_and_empty_ones_leave_no_gap() -> None:
    request = parsed(messages=turns(("user", "a"), ("user", ""), ("user", "b"), ("assistant", "c"), ("assistant", "d")))
    assert request.messages == (Message("user", "a\n\nb"), Message("assistant", "c\n\nd"))


@pytest.mark.parametrize("system", ["", [], None])
def test_empty_system_text_is_no_turn(system: Any) -> None:
    assert parsed(system=system).messages == (Message("user", "hi"),)


def test_a_last_assistant_turn_is_continued() -> None:
    assert parsed(messages=turns(("user", "a"), ("assistant", "{"))).is_continuation
    assert not parsed().is_continuation


def test_an_envelope_parses_as_its_line_does() -> None:
    data = line(max_tokens=3)
    assert parse_request(decode_envelope(data), Defaults()) == parse_request(data, Defaults())


STRING_OR_BLOCKS = "must be a string or a list of text blocks"

BAD = [
    ({"max_tokens": 0}, "params.max_tokens: must be at least 1, got 0"),
    ({"max_tokens": -5}, "params.max_tokens: must be at least 1, got -5"),
    ({"max_tokens": "5"}, 'params.max_tokens: must be a whole number, got "5"'),
    ({"max_tokens": 1.5}, "params.max_tokens: must be a whole number, got 1.5"),
    ({"max_tokens": True}, "params.max_tokens: must be a whole number, got true"),
    ({"max_tokens": 2**31}, "params.max_tokens: must be at most 2147483647, got 2147483648"),
    ({"max_token": 5}, "params.max_token: unknown field; did you mean max_tokens?"),
    ({"maxTokens": 5}, "params.maxTokens: unknown field; did you mean max_tokens?"),
    ({"qqq": 5}, "params.qqq: unknown field; remove it"),
    ({"temperature": 2.5}, "params.temperature: must be at most 2, got 2.5"),
    ({"temperature": "hot"}, 'params.temperature: must be a number, got "hot"'),
    ({"top_p": 0}, "params.top_p: must be greater than 0, got 0"),
    ({"top_k": -2}, "params.top_k: must be at least -1, got -2"),
    ({"seed": 2**63}, "params.seed: must be at most 9223372036854775807, got 9223372036854775808"),
    ({"stop_sequences": [""]}, "params.stop_sequences[0]: must not be empty"),
    ({"stop_sequences": "x"}, 'params.stop_sequences: must be a list, got "x"'),
    ({"model": ""}, "params.model: must not be empty"),
    ({"model": 5}, "params.model: must be a string, got 5"),
    ({"messages": []}, "params.messages: must not be empty"),
    ({"messages": {}}, "params.messages: must be a list, got an object"),
    ({"messages": turns(("system", "x"))}, "params.messages: has no user turn; add one"),
    ({"messages": turns(("user", 5))}, f"params.messages[0].content: {STRING_OR_BLOCKS}, got 5"),
    ({"messages": turns(("user", []))}, "params.messages[0].content: must not be empty"),
    (
        {"messages": turns(("tool", "x"))},
        'params.messages[0].role: must be "user", "assistant" or "system", got "tool"',
    ),
    ({"messages": [{"role": "user"}]}, "params.messages[0].content: is missing"),
    (
        {"messages": [{"role": "user", "content": "x", "contnt": 1}]},
        "params.messages[0].contnt: unknown field; did you mean content?",
    ),
    (
        {"messages": turns(("user", [{"type": "search_result", "source": "x"}]))},
        'params.messages[0].content[0]: blocks of type "search_result" are not supported; use a text block',
    ),
    (
        {"messages": turns(("user", [{"type": "text", "txt": "x", "text": "y"}]))},
        "params.messages[0].content[0].txt: unknown field; did you mean text?",
    ),
    ({"system": 5}, f"params.system: {STRING_OR_BLOCKS}, got 5"),
    ({"system": [{"type": "text"}]}, "params.system[0].text: is missing"),
    ({"betas": ["x-2026"]}, "params.betas: beta features are not supported; remove it"),
    ({"fallbacks": [{}]}, "params.fallbacks: fallbacks are not supported; remove it"),
    ({"stream": True}, "params.stream: streaming is not supported in a batch; remove it or set it to false"),
    (
        {"thinking": {"type": "sometimes"}},
        'params.thinking.type: must be "enabled", "adaptive", "between_tools" or "disabled", got "sometimes"',
    ),
    (
        {"output_config": {"format": {"type": "xml", "schema": {}}}},
        'params.output_config.format.type: must be "json_schema", got "xml"',
    ),
    (
        {"output_config": {"format": {"type": "json_schema", "schema": []}}},
        "params.output_config.format.schema: must be an object, got a list",
    ),
]


@pytest.mark.parametrize(("params", "message"), BAD, ids=[row[1][:60] for row in BAD])
def test_what_is_wrong_inside_params_is_named(params: dict[str, Any], message: str) -> None:
    assert refusal(line(**params)) == message


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("{}", "params.messages: is missing"),
        (
            '{"messages":%s,"temperature":1e400}',
            "params.temperature: must be a finite number, got a number out of range",
        ),
        ('{"messages":%s,"top_k":' + "9" * 5000 + "}", "params: a number has too many digits"),
        ('{"messages":%s,"metadata":' + "[" * 300 + "]" * 300 + "}", "params: is nested too deeply"),
    ],
)
def test_what_only_raw_json_can_say_is_refused(params: str, message: str) -> None:
    assert refusal(b'{"custom_id":"a","params":' + params.replace("%s", json.dumps(HI)).encode() + b"}") == message


def test_several_problems_are_counted_in_the_message_and_listed_in_full() -> None:
    data = line(max_tokens=0, top_p=7, tools=[1])
    assert refusal(data) == "params.max_tokens: must be at least 1, got 0 (and 2 more)"
    assert [problem.where for problem in find_problems(data)] == [
        "params.max_tokens",
        "params.top_p",
        "params.tools[0]",
    ]


def test_a_bad_outside_does_not_hide_a_bad_inside() -> None:
    problems = find_problems(b'{"custom_id":"","params":{"max_tokens":0}}')
    assert [problem.where for problem in problems] == ["custom_id", "params.messages", "params.max_tokens"]


def test_a_good_line_has_no_problem() -> None:
    assert find_problems(line()) == []


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["text", "user", "system", "json_schema", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "text", "role", "content", "format", "schema", "x"]), inner, max_size=4
        )
    ),
    max_leaves=10,
)
keys = st.sampled_from(["messages", "system", "max_tokens", "output_config", "tools", "thinking", "stop", "n", "zz"])


@given(st.dictionaries(keys, values, max_size=4), st.sampled_from(["params", "body"]))
def test_any_json_inside_is_parsed_or_refused_with_its_problems(inside: dict[str, Any], root: str) -> None:
    data = json.dumps(
        {"custom_id": "a", root: inside}
        | ({} if root == "params" else {"method": "POST", "url": "/v1/chat/completions"})
    ).encode()
    problems = find_problems(data)
    with suppress(InvalidRequest):
        parse_request(data, Defaults())
        assert problems == []
        return
    assert problems
