"""OpenAI's `body` of a chat completion with vLLM's extra sampling parameters, and its conversion to a Request."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec.structs import replace
from pydantic import Field, ValidationInfo, field_validator

from batchfile.endpoints import URLS
from batchfile.lines.diagnostics import Diagnostic, Path
from batchfile.lines.formats.media import OpenAIPart, RefusalPart, misplaced_media, spoken
from batchfile.lines.formats.openai_shared import Ignored, PlainSampled, asked_of, format_keys
from batchfile.lines.formats.options import ChatOptions, option_problems, sent_options
from batchfile.lines.formats.shared import (
    CHECKED,
    JOINT,
    SYSTEM_ROLES,
    TOKENS_MAX,
    Effectless,
    Format,
    Name,
    NoEffect,
    Strict,
    TextBlock,
    UnsupportedKey,
    Whole,
    choice_problems,
    join_turns,
    misplaced,
    unanswered,
    unknown_call,
    without_user,
)
from batchfile.types import Defaults, LimitKey, Message, Request, Role, Tool, ToolCall, Tools

URL = URLS["chat"]

_TOOLS = "is deprecated and not supported; use tools"
_TOOLS_FIX = "Use tools and tool_choice."


class Function(Strict):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(Strict):
    """A tool in OpenAI's format."""

    type: Literal["function"]
    function: Function


class NamedFunction(Strict):
    name: Name


class FunctionChoice(Strict):
    type: Literal["function"]
    function: NamedFunction


def is_object(arguments: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(arguments or "{}"), dict)
    except (ValueError, RecursionError):
        return False


class CalledFunction(Strict):
    name: Name
    arguments: str

    @field_validator("arguments")
    @classmethod
    def _is_object(cls, arguments: str) -> str:
        if not is_object(arguments):
            raise ValueError("must be a string that contains a JSON object")
        return arguments


class FunctionCall(Strict):
    id: Name
    type: Literal["function"] = "function"
    function: CalledFunction
    index: NoEffect = None


class ChatMessage(Strict):
    """The fields that must be null are in answers that clients send back as history."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextBlock], Field(min_length=1)] | None = None
    name: Name | None = None
    annotations: NoEffect = None
    refusal: str | None = None
    audio: None = None
    function_call: None = None
    reasoning: NoEffect = None
    reasoning_content: NoEffect = None
    tool_calls: list[FunctionCall] | None = None
    tool_call_id: str | None = None


class AnyMessage(ChatMessage):
    content: str | Annotated[list[OpenAIPart], Field(min_length=1)] | None = None  # type: ignore[assignment]


class PlainBody(PlainSampled):
    """The fields that most bodies have alone."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[Whole, Field(ge=1, le=TOKENS_MAX)] | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None

    @field_validator("max_completion_tokens")
    @classmethod
    def _is_the_only_limit(cls, given: int | None, info: ValidationInfo) -> int | None:
        other = info.data.get("max_tokens")
        if None not in (given, other) and given != other:
            raise ValueError(f"is {given}, but max_tokens is {other}; keep one of them")
        return given


_CACHED = Effectless("prefixes are cached without it")
_VENDORS = Effectless("about the vendor's own service")


class Body(PlainBody, ChatOptions, Ignored):
    """The fields of `body`."""

    messages: Annotated[list[AnyMessage], Field(min_length=1)]  # type: ignore[assignment]

    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    thinking_token_budget: Annotated[Whole, Field(ge=-1, le=TOKENS_MAX)] | None = None
    include_reasoning: bool | None = None

    metadata: Annotated[Any, Effectless("a label for the vendor")] = None
    prediction: Annotated[Any, Effectless("it only saves time, and changes no answer")] = None
    prompt_cache_key: Annotated[Any, _CACHED] = None
    prompt_cache_options: Annotated[Any, _CACHED] = None
    prompt_cache_retention: Annotated[Any, _CACHED] = None
    safety_identifier: Annotated[Any, Effectless("a label for the vendor")] = None
    service_tier: Annotated[Any, _VENDORS] = None
    store: Annotated[Any, _VENDORS] = None

    # Rejected, except with a value that has no effect.
    audio: Annotated[Any, UnsupportedKey((None,), "audio is not supported; remove it")] = None
    function_call: Annotated[Any, UnsupportedKey((None, "none", "auto"), _TOOLS, _TOOLS_FIX)] = None
    functions: Annotated[Any, UnsupportedKey((None, []), _TOOLS, _TOOLS_FIX)] = None
    modalities: Annotated[
        Any, UnsupportedKey((None, ["text"]), 'only ["text"] is supported; remove it', "Remove it.")
    ] = None
    moderation: Annotated[Any, UnsupportedKey((None,), "moderation is not supported; remove it")] = None
    web_search_options: Annotated[Any, UnsupportedKey((None,), "web search is not supported; remove it")] = None


def _is_plain(body: PlainBody) -> bool:
    """Whether it has nothing to check: no options or tools, turns of text only, and one that is not a system turn."""
    if type(body) is not PlainBody or not CHECKED.isdisjoint(body.model_fields_set):
        return False
    is_spoken = False
    for turn in body.messages:
        is_spoken |= turn.role not in SYSTEM_ROLES
        if turn.content is None or turn.tool_calls is not None or turn.role == "tool" or turn.refusal is not None:
            return False
        if turn.tool_call_id is not None:
            return False
        if turn.name is not None and turn.role in SYSTEM_ROLES:
            return False
    return is_spoken


def more_problems(body: PlainBody) -> list[Diagnostic]:
    if _is_plain(body):
        return []
    found = without_user(body.messages, "body") + misplaced_media(body.messages, "body")
    found += _system_names(body) + _tool_problems(body)
    if type(body) is PlainBody:
        return found
    return found + option_problems(sent_options(body, PlainBody), "body", format_keys(body))


def _system_names(body: PlainBody) -> list[Diagnostic]:
    """System turns are merged into one, which has at most one name."""
    named = [(number, turn.name) for number, turn in enumerate(body.messages) if turn.role in SYSTEM_ROLES]
    message = "system turns with different names are not supported, because they are merged; use one name or none"
    return [Diagnostic(("body", "messages", number, "name"), message) for number, name in named if name != named[0][1]][
        :1
    ]


def _tool_problems(body: PlainBody) -> list[Diagnostic]:
    tools = tools_of(body.tools, body.tool_choice, body.parallel_tool_calls)
    is_forced = body.tool_choice not in (None, "none", "auto")
    return _call_problems(body.messages) + choice_problems(tools, is_forced=is_forced, root="body")


def tools_of(
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


def _calls(given: list[FunctionCall]) -> tuple[ToolCall, ...]:
    return tuple(
        ToolCall(call.id, call.function.name, msgspec.json.decode(call.function.arguments or "{}")) for call in given
    )


def _call_problems(turns: list[Any]) -> list[Diagnostic]:
    """Tool calls and results in the wrong turn or without a match, and missing content."""
    diagnostics: list[Diagnostic] = []
    called: set[str] = set()
    for n, turn in enumerate(turns):
        place: Path = ("body", "messages", n)
        if turn.tool_calls:
            called.update(call.id for call in turn.tool_calls)
            if turn.role != "assistant":
                diagnostics.append(misplaced((*place, "tool_calls"), "tool_calls", "an assistant"))
        elif turn.content is None and not turn.refusal:
            diagnostics.append(Diagnostic((*place, "content"), "is missing", "Add it."))
        if turn.refusal is not None and turn.role != "assistant":
            diagnostics.append(misplaced((*place, "refusal"), "refusal", "an assistant"))
        diagnostics += _misplaced_refusals(turn, place)
        if turn.tool_call_id is not None and turn.role != "tool":
            diagnostics.append(misplaced((*place, "tool_call_id"), "tool_call_id", "a tool"))
        if turn.role == "tool" and turn.tool_call_id is None:
            diagnostics.append(Diagnostic((*place, "tool_call_id"), "is missing", "Name the call that this answers."))
        elif turn.role == "tool" and turn.tool_call_id not in called:
            diagnostics.append(unknown_call((*place, "tool_call_id"), turn.tool_call_id))
    if turns[-1].tool_calls:
        diagnostics.append(unanswered(("body", "messages", len(turns) - 1)))
    return diagnostics


def _misplaced_refusals(turn: ChatMessage, place: Path) -> list[Diagnostic]:
    if turn.role == "assistant" or not isinstance(turn.content, list):
        return []
    parts: list[Any] = [*turn.content]
    return [
        misplaced((*place, "content", at), "refusal", "an assistant")
        for at, part in enumerate(parts)
        if isinstance(part, RefusalPart)
    ]


def _message(turn: ChatMessage) -> Message:
    role: Role = "system" if turn.role == "developer" else turn.role
    said = spoken(role, turn.content or "", turn.name)
    if turn.refusal:
        said = replace(said, content=JOINT.join(filter(None, (said.content, turn.refusal))))
    if turn.tool_calls is None and turn.role != "tool":
        return said
    return Message(role, said.content, _calls(turn.tool_calls or []), turn.tool_call_id, turn.name)


def to_request(custom_id: str, body: PlainBody, defaults: Defaults) -> Request:
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    limit_key: LimitKey = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    asked = asked_of(body, PlainBody, defaults, max_tokens, defaults.max_tokens, limit_key)
    return Request(
        custom_id=custom_id,
        messages=join_turns([_message(turn) for turn in body.messages]),
        model=body.model or defaults.model,
        tools=None if body.tools is None else tools_of(body.tools, body.tool_choice, body.parallel_tool_calls),
        sampling=asked.sampling,
        options=asked.options,
        keeps_thinking=not (isinstance(body, Body) and body.include_reasoning is False),
    )


FORMAT = Format(url=URL, plain=PlainBody, body=Body, to_request=to_request, more_problems=more_problems)
