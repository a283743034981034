"""Tools in both request formats, and the calls and the thinking in results."""

import json
from typing import Any

import pytest

from batchfile.errors import InvalidRequest
from batchfile.types import Choice, Completion, Defaults, Message, Request, Tool, ToolCall, Tools, Usage
from tests.helpers.lines import anthropic_lines, decode_result, encode_result, openai_file, parse_request, stage_lines

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
LOOK = {"name": "look", "description": "Look.", "input_schema": SCHEMA, "cache_control": {"type": "ephemeral"}}
FUNCTION = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": SCHEMA}}
OFFERED = (Tool("look", "Look.", SCHEMA),)
HI = [{"role": "user", "content": "hi"}]
CALL = {"type": "tool_use", "id": "t1", "name": "look", "input": {"city": "Bern"}, "caller": {"type": "direct"}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "fog"}], "is_error": False}
CALLED = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"city":"Bern"}'}}


def native(**params: Any) -> Request:
    return parse_request(json.dumps({"custom_id": "a", "params": {"messages": HI} | params}).encode(), Defaults())


def openai(**body: Any) -> Request:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": HI} | body}
    return parse_request(json.dumps(line).encode(), Defaults())


@pytest.mark.parametrize(
    ("anthropic", "function", "tools"),
    [
        (None, None, Tools(offered=OFFERED)),
        ({"type": "auto"}, "auto", Tools(offered=OFFERED)),
        ({"type": "any"}, "required", Tools(offered=OFFERED, choice="any")),
        (
            {"type": "tool", "name": "look"},
            {"type": "function", "function": {"name": "look"}},
            Tools(offered=OFFERED, choice="named", name="look"),
        ),
        ({"type": "none"}, "none", None),
    ],
)
def test_both_formats_offer_tools_alike(anthropic: Any, function: Any, tools: Tools | None) -> None:
    assert native(tools=[LOOK], tool_choice=anthropic).tools == tools
    assert openai(tools=[FUNCTION], tool_choice=function).tools == tools


def test_one_call_at_a_time_is_asked_for_in_both_formats() -> None:
    wanted = Tools(offered=OFFERED, is_parallel=False)
    assert native(tools=[LOOK], tool_choice={"type": "auto", "disable_parallel_tool_use": True}).tools == wanted
    assert openai(tools=[FUNCTION], parallel_tool_calls=False).tools == wanted


def test_the_model_is_told_that_a_tool_failed() -> None:
    def told(**result: Any) -> str:
        turns = [*HI, {"role": "assistant", "content": [CALL]}, {"role": "user", "content": [RESULT | result]}]
        return native(messages=turns).messages[-1].content

    assert told(is_error=True) == "Error: fog"
    assert told(is_error=False) == told(is_error=None) == "fog"
    with pytest.raises(InvalidRequest, match="is_error: must be true or false"):
        told(is_error="yes")


def test_calls_and_their_answers_are_turns_alike() -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": ""}
    said = {"type": "text", "text": "I look."}
    messages = [
        *HI,
        {"role": "assistant", "content": [thought, {"type": "redacted_thinking", "data": "x"}, said, CALL]},
        {"role": "user", "content": [RESULT, {"type": "text", "text": "So?"}]},
    ]
    turns = (
        Message("user", "hi"),
        Message("assistant", "I look.", (ToolCall("t1", "look", {"city": "Bern"}),)),
        Message("tool", "fog", call_id="t1"),
        Message("user", "So?"),
    )
    assert native(messages=messages).messages == turns
    called = [
        *HI,
        {"role": "assistant", "content": "I look.", "tool_calls": [CALLED | {"id": "t1"}], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "t1", "content": "fog"},
        {"role": "user", "content": "So?"},
    ]
    assert openai(messages=called).messages == turns


def test_answers_of_several_tools_stay_apart() -> None:
    calls = [CALLED, CALLED | {"id": "c2"}]
    answers = [{"role": "tool", "tool_call_id": name, "content": name} for name in ("c1", "c2")]
    found = openai(messages=[*HI, {"role": "assistant", "content": None, "tool_calls": calls}, *answers]).messages
    assert [(turn.role, turn.content, turn.call_id) for turn in found[2:]] == [
        ("tool", "c1", "c1"),
        ("tool", "c2", "c2"),
    ]


@pytest.mark.parametrize(
    ("kind", "is_thinking"), [("enabled", True), ("adaptive", True), ("between_tools", True), ("disabled", False)]
)
def test_thinking_is_asked_for(kind: str, is_thinking: bool) -> None:
    assert native(thinking={"type": kind}).is_thinking is is_thinking
    assert native().is_thinking is None


def turn(role: str, *blocks: Any) -> list[Any]:
    return [*HI, {"role": role, "content": list(blocks)}]


NATIVE_BAD = [
    (
        {"tools": [LOOK | {"type": "web_search_20250305"}]},
        'params.tools[0].type: server tools such as "web_search_20250305" are not supported; only "custom" tools are',
    ),
    ({"tools": [{"name": "x"}]}, "params.tools[0].input_schema: is missing"),
    ({"tools": [LOOK | {"input_schem": {}}]}, "params.tools[0].input_schem: unknown field; did you mean input_schema?"),
    ({"tools": [LOOK, LOOK]}, 'params.tools[1]: duplicate tool name "look"'),
    ({"tool_choice": {"type": "any"}}, "params.tool_choice: requires a tool call, but there are no tools"),
    (
        {"tools": [LOOK], "tool_choice": {"type": "tool", "name": "see"}},
        'params.tool_choice: names "see", which is not in tools',
    ),
    ({"tools": [LOOK], "tool_choice": {"type": "tool"}}, "params.tool_choice: does not name a tool"),
    (
        {"tools": [LOOK], "tool_choice": {"type": "must"}},
        'params.tool_choice.type: must be "auto", "any", "tool" or "none", got "must"',
    ),
    (
        {"messages": turn("user", RESULT)},
        'params.messages[1].content[0].tool_use_id: "t1" does not match an earlier tool call',
    ),
    (
        {"messages": turn("user", CALL) + HI},
        "params.messages[1].content[0]: tool_use belongs in an assistant turn",
    ),
    (
        {"messages": turn("assistant", CALL)},
        "params.messages[1]: calls a tool, but the result of the tool does not follow",
    ),
    (
        {"messages": turn("assistant", CALL | {"input": "x"})},
        'params.messages[1].content[0].input: must be an object, got "x"',
    ),
    (
        {"messages": turn("user", RESULT | {"content": [{"type": "image", "source": {}}]})},
        'params.messages[1].content[0].content[0]: blocks of type "image" are not supported; use a text block',
    ),
    ({"messages": turn("user", {"text": "x"})}, "params.messages[1].content[0].type: is missing"),
]
OPENAI_BAD = [
    ({"tools": [{"type": "function"}]}, "body.tools[0].function: is missing"),
    ({"tools": [{"type": "custom"}]}, 'body.tools[0].type: must be "function", got "custom" (and 1 more)'),
    ({"tool_choice": "required"}, "body.tool_choice: requires a tool call, but there are no tools"),
    ({"messages": [*HI, {"role": "assistant"}]}, "body.messages[1].content: is missing"),
    ({"messages": [*HI, {"role": "tool", "content": "x"}]}, "body.messages[1].tool_call_id: is missing"),
    (
        {"messages": [*HI, {"role": "tool", "content": "x", "tool_call_id": "c9"}]},
        'body.messages[1].tool_call_id: "c9" does not match an earlier tool call',
    ),
    (
        {
            "messages": [
                *HI,
                {"role": "assistant", "tool_calls": [CALLED | {"function": {"name": "f", "arguments": "["}}]},
            ]
        },
        "body.messages[1].tool_calls[0].function.arguments: must be a string that contains a JSON object",
    ),
    (
        {"messages": [{"role": "user", "content": "x", "tool_calls": [CALLED]}, *HI]},
        "body.messages[0].tool_calls: tool_calls belongs in an assistant turn",
    ),
    (
        {"messages": [*HI, {"role": "assistant", "tool_calls": [CALLED]}]},
        "body.messages[1]: calls a tool, but the result of the tool does not follow",
    ),
]


@pytest.mark.parametrize(("parts", "message"), NATIVE_BAD, ids=[row[1][:60] for row in NATIVE_BAD])
def test_what_is_wrong_with_params_is_named(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        native(**parts)
    assert str(error.value) == message


@pytest.mark.parametrize(("parts", "message"), OPENAI_BAD, ids=[row[1][:60] for row in OPENAI_BAD])
def test_what_is_wrong_with_a_body_is_named(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        openai(**parts)
    assert str(error.value) == message


CHOICE = Choice("I look.", "tool_use", calls=(ToolCall("toolu_1", "look", {"city": "Bern"}),), thinking="hm")
LINE = encode_result("a", Completion(choices=(CHOICE,), usage=Usage(output_tokens=3)), "m")
BLOCKS = [
    {"type": "thinking", "thinking": "hm", "signature": ""},
    {"type": "text", "text": "I look."},
    {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"city": "Bern"}},
]


def test_a_native_result_holds_thinking_text_and_calls_in_this_order() -> None:
    found = json.loads(LINE)
    assert (found["message"]["content"], found["stop_reason"]) == (BLOCKS, "tool_use")
    message = decode_result(LINE).message
    assert message is not None
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    assert message.content[2].input == {"city": "Bern"}


def test_calls_without_a_word_have_no_text_block() -> None:
    silent = Choice("", "tool_use", calls=CHOICE.calls)
    line = encode_result("a", Completion(choices=(silent,), usage=Usage()), "m")
    assert json.loads(line)["message"]["content"] == BLOCKS[2:]
    [made] = openai_file([line + b"\n"], batch_id="b", created=1, is_output=None)
    body = json.loads(made)["response"]["body"]
    assert body["choices"][0]["message"]["content"] is None


def test_the_stage_dialect_carries_text_and_calls_as_they_are() -> None:
    (found,) = stage_lines([LINE + b"\n"])
    assert json.loads(found)["message"] == {"content": BLOCKS[1:]}


def test_anthropics_blocks_have_every_key() -> None:
    (found,) = anthropic_lines([LINE + b"\n"], "msgbatch_1")
    message = json.loads(found)["result"]["message"]
    assert message["stop_reason"] == "tool_use"
    assert message["content"] == [
        BLOCKS[0],
        BLOCKS[1] | {"citations": None},
        BLOCKS[2] | {"caller": {"type": "direct"}},
    ]


def test_openais_message_has_calls_and_thinking_by_vllms_name() -> None:
    [made] = openai_file([LINE + b"\n"], batch_id="b", created=1, is_output=None)
    body = json.loads(made)["response"]["body"]
    assert body["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "I look.",
                "refusal": None,
                "reasoning": "hm",
                "tool_calls": [
                    {
                        "id": "toolu_1",
                        "type": "function",
                        "function": {"name": "look", "arguments": '{"city":"Bern"}'},
                    }
                ],
            },
            "logprobs": None,
            "finish_reason": "tool_calls",
        }
    ]
