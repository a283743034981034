"""Tools in both request formats: what a model may call, and the calls and answers in a conversation's turns.

What a hosted service would run itself (its own web search, say) is not served; what the caller runs is.
"""

from typing import Annotated, Any, Literal

import msgspec
from pydantic import Field, field_validator

from batchfile.lines.chat import JOINT, NoEffect, Strict, TextBlock, never, text_of
from batchfile.lines.diagnostics import Diagnostic, Path, shown
from batchfile.types import Message, Role, Tool, ToolCall, Tools

_Name = Annotated[str, Field(min_length=1)]


class ToolDefinition(Strict):
    """Anthropic's."""

    type: Literal["custom"] | None = None
    name: _Name
    input_schema: dict[str, Any]
    description: str | None = None
    allowed_callers: Annotated[Any, never('only ["direct"] is served; remove it', ["direct"])] = None
    cache_control: NoEffect = None
    defer_loading: Annotated[Any, never("deferred loading is not served; remove it", False)] = None
    eager_input_streaming: NoEffect = None
    input_examples: Annotated[Any, never("is not served; put the examples into description", [])] = None
    strict: bool | None = None

    @field_validator("type", mode="before")
    @classmethod
    def _is_the_callers(cls, kind: object) -> object:
        if isinstance(kind, str) and kind != "custom":
            raise ValueError(f'server tools such as {shown(kind)} are not served, only "custom" ones are')
        return kind


class ToolChoice(Strict):
    type: Literal["auto", "any", "tool", "none"]
    name: _Name | None = None
    disable_parallel_tool_use: bool | None = None


class ToolUseBlock(Strict):
    type: Literal["tool_use"]
    id: _Name
    name: _Name
    input: dict[str, Any]
    cache_control: NoEffect = None
    caller: NoEffect = None
    toolset_name: NoEffect = None


class ToolResultBlock(Strict):
    type: Literal["tool_result"]
    tool_use_id: _Name
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None
    cache_control: NoEffect = None
    toolset_name: NoEffect = None

    @property
    def text(self) -> str:
        """What the model reads. Chat templates have no mark for a tool that failed, so words say it."""
        text = text_of(self.content or "")
        return f"Error: {text}" if self.is_error else text


class ThinkingBlock(Strict):
    """Of an earlier answer. Models do not see what they thought before."""

    type: Literal["thinking"]
    thinking: str
    signature: NoEffect = None


class RedactedThinkingBlock(Strict):
    type: Literal["redacted_thinking"]
    data: NoEffect = None


Block = Annotated[
    TextBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedThinkingBlock, Field(discriminator="type")
]


class Function(Strict):
    name: _Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(Strict):
    """OpenAI's."""

    type: Literal["function"]
    function: Function


class NamedFunction(Strict):
    name: _Name


class FunctionChoice(Strict):
    type: Literal["function"]
    function: NamedFunction


class CalledFunction(Strict):
    name: _Name
    arguments: str

    @field_validator("arguments")
    @classmethod
    def _is_object(cls, arguments: str) -> str:
        try:
            found = msgspec.json.decode(arguments or "{}")
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise ValueError("must be a string that holds a JSON object")
        return arguments


class FunctionCall(Strict):
    id: _Name
    type: Literal["function"] = "function"
    function: CalledFunction
    index: NoEffect = None


def anthropic_tools(given: list[ToolDefinition] | None, choice: ToolChoice | None) -> Tools | None:
    """None where there are none, or none may be called."""
    if not given or (choice is not None and choice.type == "none"):
        return None
    offered = tuple(Tool(tool.name, tool.description, tool.input_schema, tool.strict) for tool in given)
    if choice is None:
        return Tools(offered=offered)
    return Tools(
        offered=offered,
        choice="named" if choice.type == "tool" else "any" if choice.type == "any" else "auto",
        name=choice.name if choice.type == "tool" else None,
        is_parallel=not choice.disable_parallel_tool_use,
    )


def openai_tools(
    given: list[FunctionTool] | None, choice: str | FunctionChoice | None, is_parallel: bool | None
) -> Tools | None:
    if not given or choice == "none":
        return None
    is_named = isinstance(choice, FunctionChoice)
    return Tools(
        offered=tuple(
            Tool(called.name, called.description, called.parameters or {"type": "object"}, called.strict)
            for called in (tool.function for tool in given)
        ),
        choice="named" if is_named else "any" if choice == "required" else "auto",
        name=choice.function.name if isinstance(choice, FunctionChoice) else None,
        is_parallel=is_parallel is not False,
    )


def turns_of_blocks(role: Role, blocks: list[Any]) -> list[Message]:
    """A turn of Anthropic's: the answers of tools first, each a turn of its own, then what was said and called."""
    turns: list[Message] = []
    texts: list[str] = []
    calls: list[ToolCall] = []
    for block in blocks:
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif isinstance(block, ToolUseBlock):
            calls.append(ToolCall(block.id, block.name, block.input))
        elif isinstance(block, ToolResultBlock):
            turns.append(Message("tool", block.text, call_id=block.tool_use_id))
    if texts or not turns:
        turns.append(Message(role, JOINT.join(texts), tuple(calls)))
    return turns


def calls_of(given: list[FunctionCall]) -> tuple[ToolCall, ...]:
    return tuple(
        ToolCall(call.id, call.function.name, msgspec.json.decode(call.function.arguments or "{}")) for call in given
    )


def block_problems(turns: list[Any], root: str) -> list[Diagnostic]:
    """What is wrong with the calls and answers in turns of Anthropic's, each of which is right by itself."""
    diagnostics: list[Diagnostic] = []
    called: set[str] = set()
    for n, turn in enumerate(turns):
        for at, block in enumerate(turn.content if isinstance(turn.content, list) else ()):
            place: Path = (root, "messages", n, "content", at)
            if isinstance(block, ToolUseBlock):
                called.add(block.id)
                if turn.role != "assistant":
                    diagnostics.append(_misplaced(place, "tool_use", "the assistant"))
            elif isinstance(block, ToolResultBlock):
                if turn.role != "user":
                    diagnostics.append(_misplaced(place, "tool_result", "the user"))
                elif block.tool_use_id not in called:
                    diagnostics.append(_unknown_call((*place, "tool_use_id"), block.tool_use_id))
    last = turns[-1].content
    if isinstance(last, list) and any(isinstance(block, ToolUseBlock) for block in last):
        diagnostics.append(_unanswered((root, "messages", len(turns) - 1)))
    return diagnostics


def call_problems(turns: list[Any], root: str) -> list[Diagnostic]:
    """The same of OpenAI's turns, and a content that is missing."""
    diagnostics: list[Diagnostic] = []
    called: set[str] = set()
    for n, turn in enumerate(turns):
        place: Path = (root, "messages", n)
        if turn.tool_calls:
            called.update(call.id for call in turn.tool_calls)
            if turn.role != "assistant":
                diagnostics.append(_misplaced((*place, "tool_calls"), "tool_calls", "the assistant"))
        elif turn.content is None and not turn.refusal:
            diagnostics.append(Diagnostic((*place, "content"), "is missing", "Add it."))
        if turn.refusal is not None and turn.role != "assistant":
            diagnostics.append(_misplaced((*place, "refusal"), "refusal", "the assistant"))
        if turn.role == "tool" and turn.tool_call_id is None:
            diagnostics.append(Diagnostic((*place, "tool_call_id"), "is missing", "Name the call that this answers."))
        elif turn.role == "tool" and turn.tool_call_id not in called:
            diagnostics.append(_unknown_call((*place, "tool_call_id"), turn.tool_call_id))
    if turns[-1].tool_calls:
        diagnostics.append(_unanswered((root, "messages", len(turns) - 1)))
    return diagnostics


def choice_problems(tools: Tools | None, *, is_forced: bool, root: str) -> list[Diagnostic]:
    """`is_forced`: the request says that a tool must be called."""
    if tools is None:
        message = "asks for the call of a tool, but tools offers none"
        return [Diagnostic((root, "tool_choice"), message, "Add tools or remove it.")] if is_forced else []
    names = [tool.name for tool in tools.offered]
    diagnostics = [
        Diagnostic((root, "tools", n), f"a second tool of the name {shown(name)}", "Give each a name of its own.")
        for n, name in enumerate(names)
        if name in names[:n]
    ]
    if tools.choice == "named" and tools.name not in names:
        message = "names no tool" if tools.name is None else f"names {shown(tools.name)}, which tools does not offer"
        diagnostics.append(Diagnostic((root, "tool_choice"), message, "Name one that is offered."))
    return diagnostics


def _misplaced(place: Path, what: str, whose: str) -> Diagnostic:
    return Diagnostic(place, f"{what} belongs in a turn of {whose}", "Move it there.")


def _unknown_call(place: Path, call_id: str) -> Diagnostic:
    return Diagnostic(place, f"{shown(call_id)} is the id of no call before it", "Send the turn with the call, too.")


def _unanswered(place: Path) -> Diagnostic:
    return Diagnostic(place, "calls a tool, and its answer does not follow", "Add what the tool answered.")
