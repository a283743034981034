"""Keys that two others could hide, or that belong elsewhere: each is read, or rejected by name."""

import json
from typing import Any

import pytest

from batchfile.errors import InvalidRequest
from batchfile.types import Defaults, Request
from tests.helpers.lines import Media, parse_request

QUESTION = {"role": "user", "content": "q"}
TEXT = "data:text/plain;base64,Qm9keSB0ZXh0"


def read(body: dict[str, Any], url: str = "/v1/chat/completions") -> Request:
    key = {"params": body} if url == "params" else {"method": "POST", "url": url, "body": body}
    return parse_request(json.dumps({"custom_id": "a"} | key).encode(), Defaults())


def reason(body: dict[str, Any], url: str = "/v1/chat/completions") -> str:
    with pytest.raises(InvalidRequest) as caught:
        read(body, url)
    return str(caught.value)


def chat(*turns: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [*turns]}


def with_file(**keys: str) -> dict[str, Any]:
    return chat({"role": "user", "content": [{"type": "file", "file": keys}]})


def test_a_file_name_stands_before_the_text_of_a_url_as_before_data() -> None:
    assert read(with_file(file_data=TEXT, filename="a.txt")).messages[0].content == "a.txt\n\nBody text"
    parts = read(with_file(file_url="d.txt", filename="a.txt")).messages[0].parts
    assert parts == ("a.txt", Media(kind="document", source="d.txt"))


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        ({"file_data": TEXT, "file_url": "d.txt"}, "file_data and file_url"),
        ({"file_data": TEXT, "file_id": "f"}, "file_data and file_id"),
        ({"file_url": "d.txt", "file_id": "f"}, "file_url and file_id"),
    ],
    ids=["url", "id", "url-and-id"],
)
def test_a_file_has_one_source(keys: dict[str, str], names: str) -> None:
    assert reason(with_file(**keys)).endswith(f"has {names}; keep one of them")


def test_a_refusal_is_history_in_each_form() -> None:
    part = [{"type": "refusal", "refusal": "No."}]
    for turn in ({"content": None, "refusal": "No."}, {"content": part}):
        assert read(chat(QUESTION, {"role": "assistant", **turn}, QUESTION)).messages[1].content == "No."
    both = read(chat(QUESTION, {"role": "assistant", "content": "Well.", "refusal": "No."}, QUESTION))
    assert both.messages[1].content == "Well.\n\nNo."
    response = {"input": [QUESTION, {"role": "assistant", "content": part}, QUESTION]}
    assert read(response, "/v1/responses").messages[1].content == "No."


def test_a_refusal_is_the_assistants() -> None:
    turn = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]}
    assert reason(chat(turn)) == "body.messages[0].content[1]: refusal belongs in an assistant turn"


def test_the_id_of_a_call_belongs_to_a_tool() -> None:
    assert "tool_call_id belongs in a tool turn" in reason(chat(QUESTION | {"tool_call_id": "c"}))


def test_only_a_choice_of_a_tool_has_a_name() -> None:
    params = {**chat(QUESTION), "tool_choice": {"type": "auto", "name": "f"}}
    assert reason(params, "params").startswith('params.tool_choice.name: is only allowed with the type "tool"')


def test_verbosity_is_read_in_params_too() -> None:
    options = read({**chat(QUESTION), "verbosity": "low"}, "params").options
    assert options is not None
    assert options.verbosity == "low"


ASKED = {"role": "user", "content": "q"}
RESPONSES: dict[str, tuple[dict[str, Any], str]] = {
    "image": (
        {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
        "body.input[0].content[0]: needs image_url",
    ),
    "item": (
        {"input": [{"type": "item_reference", "id": "x"}]},
        'body.input[0].type: items of type "item_reference" are not supported; use function_call, '
        "function_call_output, message, reasoning",
    ),
    "part": (
        {"input": [{"role": "user", "content": [{"type": "video"}]}]},
        'body.input[0].content[0].type: parts of type "video" are not supported; use input_audio, input_file, '
        "input_image, input_text, output_text, refusal, text",
    ),
    "after-instructions": (
        {
            "instructions": "i",
            "input": [
                {"type": "reasoning"},
                ASKED,
                {"role": "assistant", "content": [{"type": "input_image", "image_url": "a.png"}]},
            ],
        },
        "body.input[2].content[0]: input_image belongs in a user turn",
    ),
    "call": (
        {"input": [ASKED, {"type": "function_call_output", "call_id": "z", "output": "x"}]},
        'body.input[1].call_id: "z" does not match an earlier tool call',
    ),
    "arguments": (
        {"input": [{"type": "function_call", "call_id": "a", "name": "b", "arguments": "x"}, ASKED]},
        "body.input[0].arguments: must be a string that contains a JSON object",
    ),
    "max_tokens": ({"input": "q", "max_tokens": 5}, "body.max_tokens: unknown field; did you mean max_output_tokens?"),
    "format": (
        {"input": "q", "text": {"format": {"type": "json_object"}}, "guided_choice": ["a"]},
        "body.guided_choice: conflicts with text.format; keep one of them",
    ),
    "output": (
        {
            "input": [
                ASKED,
                {"type": "function_call", "call_id": "z", "name": "f", "arguments": "{}"},
                {
                    "type": "function_call_output",
                    "call_id": "z",
                    "output": [{"type": "input_image", "image_url": "a.png"}],
                },
            ]
        },
        "body.input[2].output[0]: input_image belongs in a user turn",
    ),
    "effort": (
        {"input": "q", "reasoning_effort": "low"},
        "body.reasoning_effort: is not supported here; use reasoning.effort",
    ),
}


@pytest.mark.parametrize("name", RESPONSES)
def test_errors_of_responses_name_the_place_in_the_request(name: str) -> None:
    body, message = RESPONSES[name]
    assert reason(body, "/v1/responses") == message
