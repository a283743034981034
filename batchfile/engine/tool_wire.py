"""Tools, calls and turns in the form that chat templates and OpenAI-compatible endpoints share. No I/O.

Ids of calls are made here, of the conversation and the place in it: the same work gives the same bytes, and two calls
of one conversation never have the same id.
"""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import msgspec

from batchfile.types import Message, Request, ToolCall, Tools

NO_TOOLS = "Tools are not served by this pool: {why}. Remove tools, or name another model."
NO_THINKING = "Thinking is not served by this pool: {why}. Remove thinking, or name another model."


INPUT_DEPTH_MAX = 200  # of what a model writes: whatever writes and reads results recurses


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
    """`arguments` as an object, as templates take them; endpoints want it as a string."""
    name = {} if turn.name is None else {"name": turn.name}
    if turn.call_id is not None:
        return {"role": "tool", "tool_call_id": turn.call_id, "content": turn.content, **name}
    if not turn.calls:
        return {"role": turn.role, "content": turn.content, **name}
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.input}}
        for call in turn.calls
    ]
    return {"role": turn.role, "content": turn.content, "tool_calls": calls, **name}


def call_stem(request: Request) -> str:
    """What the ids of all calls in the answer to this request begin with."""
    asked = msgspec.json.encode((request.custom_id, [_told(turn) for turn in request.messages]))
    return "toolu_" + blake2b(asked, digest_size=10).hexdigest()


def _told(turn: Message) -> dict[str, Any]:
    told = {"role": turn.role, "content": turn.content, "calls": turn.calls, "call_id": turn.call_id}
    return told if turn.name is None else told | {"name": turn.name}


def made_calls(stem: str, choice: int, found: Iterable[tuple[str, Any]]) -> tuple[ToolCall, ...]:
    """Names and inputs, in order, as calls. Raises: ValueError for what can be none (an input that is no object)."""
    calls = []
    for number, (name, given) in enumerate(found):
        if not isinstance(name, str):
            raise ValueError("the name of a tool that is called is no text")
        if not isinstance(given, dict):
            raise ValueError(f"the input of the tool {name} is no JSON object")
        if _is_deeper(given, INPUT_DEPTH_MAX):
            raise ValueError(f"the input of the tool {name} is nested more than {INPUT_DEPTH_MAX} deep")
        calls.append(ToolCall(f"{stem}{choice:02x}{number:02x}", name, given))
    return tuple(calls)


def _is_deeper(value: Any, depth: int) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth == 0 or any(_is_deeper(item, depth - 1) for item in inside)
