"""Converts tools, tool calls and turns to the form that chat templates and OpenAI-compatible endpoints share.

Ids of tool calls are derived from the conversation and the position in it. So the same request gives the same ids, and
two calls in one conversation never have the same id.
"""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import msgspec

from batchfile.types import Message, Request, ToolCall, Tools

NO_TOOLS = "This pool does not support tools: {why}. Remove tools, or name another model."
NO_THINKING = "This pool does not support thinking: {why}. Remove thinking, or name another model."


INPUT_DEPTH_MAX = 200  # of a model's output: code that writes and reads results is recursive


def wire_tools(tools: Tools) -> list[dict[str, Any]]:
    return [
        {
            "type": "function",
            "function": {"name": tool.name, "parameters": tool.input_schema}
            | ({} if tool.description is None else {"description": tool.description}),
        }
        for tool in tools.offered
    ]


def wire_choice(tools: Tools) -> str | dict[str, Any]:
    named = {"type": "function", "function": {"name": tools.name}}
    return named if tools.choice == "named" else {"auto": "auto", "any": "required"}[tools.choice]


def wire_turn(turn: Message) -> dict[str, Any]:
    """`arguments` is an object, for templates; endpoints need a string."""
    name = {} if turn.name is None else {"name": turn.name}
    if turn.parts:
        return {"role": turn.role, "content": wire_parts(turn), **name}
    if turn.call_id is not None:
        return {"role": "tool", "tool_call_id": turn.call_id, "content": turn.content, **name}
    if not turn.calls:
        return {"role": turn.role, "content": turn.content, **name}
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.input}}
        for call in turn.calls
    ]
    return {"role": turn.role, "content": turn.content, "tool_calls": calls, **name}


def wire_parts(turn: Message) -> list[dict[str, Any]]:
    """The content of a turn as chat templates of models with media take it: each medium is its kind alone.

    Adjacent texts are one, separated as in turns without media, because templates write them without a separator.
    """
    made: list[dict[str, Any]] = []
    for part in turn.parts or (turn.content,):
        if not isinstance(part, str):
            made.append({"type": part.kind})
        elif made and made[-1]["type"] == "text":
            made[-1]["text"] = "\n\n".join(filter(None, (made[-1]["text"], part)))
        else:
            made.append({"type": "text", "text": part})
    return made


def call_stem(request: Request) -> str:
    """The prefix of the ids of all tool calls in the answer to this request."""
    asked = msgspec.json.encode((request.custom_id, [_fields_of(turn) for turn in request.messages]))
    return "toolu_" + blake2b(asked, digest_size=10).hexdigest()


def _fields_of(turn: Message) -> dict[str, Any]:
    fields = {"role": turn.role, "content": turn.content, "calls": turn.calls, "call_id": turn.call_id}
    return fields if turn.name is None else fields | {"name": turn.name}


def made_calls(stem: str, choice: int, found: Iterable[tuple[str, Any]]) -> tuple[ToolCall, ...]:
    """Names and inputs, in order, as tool calls. Raises: ValueError for an invalid name or input."""
    calls = []
    for number, (name, given) in enumerate(found):
        if not isinstance(name, str):
            raise ValueError("the name of a called tool is not a string")
        if not isinstance(given, dict):
            raise ValueError(f"the input of the tool {name} is not a JSON object")
        if _is_deeper(given, INPUT_DEPTH_MAX):
            raise ValueError(f"the input of the tool {name} is nested more than {INPUT_DEPTH_MAX} levels deep")
        calls.append(ToolCall(f"{stem}{choice:02x}{number:02x}", name, given))
    return tuple(calls)


def _is_deeper(value: Any, depth: int) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth == 0 or any(_is_deeper(item, depth - 1) for item in inside)
