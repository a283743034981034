"""OpenAI's `body` of a response (/v1/responses), as far as it depends on no earlier one: read as a chat completion."""

from dataclasses import replace as replace_field
from functools import cache, cached_property
from typing import Annotated, Any, Literal

from msgspec.structs import replace
from pydantic import Discriminator, Field, Tag, model_validator

from batchfile.lines.diagnostics import Diagnostic, Path
from batchfile.lines.formats import openai_chat
from batchfile.lines.formats.media import InputAudioPart, InputFilePart, InputImagePart, RefusalPart
from batchfile.lines.formats.options import INT64_MAX, INT64_MIN, GeneratingOptions, NumLogprobs, TemplateArguments
from batchfile.lines.formats.shared import (
    TOKENS_MAX,
    Effectless,
    Format,
    Name,
    NoEffect,
    Strict,
    UnsupportedKey,
    Whole,
    rules_of,
)
from batchfile.types import Defaults, Request

URL = "/v1/responses"

_VENDOR_ALONE = UnsupportedKey((None,), "is not supported; remove it")
_LOGPROBS = "message.output_text.logprobs"  # of `include`
_ALONE = "requests of a batch cannot refer to earlier ones; put the whole conversation into input"


class Part(Strict):
    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: NoEffect = None
    logprobs: NoEffect = None


AnyPart = Annotated[Part | RefusalPart | InputImagePart | InputFilePart | InputAudioPart, Field(discriminator="type")]
Content = str | Annotated[list[AnyPart], Field(min_length=1)]


class Spoken(Strict):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    id: NoEffect = None
    phase: NoEffect = None
    status: NoEffect = None


class Called(Strict):
    type: Literal["function_call"]
    call_id: Name
    name: Name
    arguments: str
    id: NoEffect = None
    status: NoEffect = None


class Returned(Strict):
    type: Literal["function_call_output"]
    call_id: Name
    output: Content
    id: NoEffect = None
    status: NoEffect = None


class Thought(Strict):
    """Thinking of an earlier answer, which is not shown to the model."""

    type: Literal["reasoning"]
    id: NoEffect = None
    content: NoEffect = None
    encrypted_content: NoEffect = None
    status: NoEffect = None
    summary: NoEffect = None


def _type_of(item: Any) -> str:
    return str(item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", "message"))


Item = Annotated[
    Annotated[Spoken, Tag("message")]
    | Annotated[Called, Tag("function_call")]
    | Annotated[Returned, Tag("function_call_output")]
    | Annotated[Thought, Tag("reasoning")],
    Discriminator(_type_of),
]


class FunctionTool(Strict):
    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedFunction(Strict):
    type: Literal["function"]
    name: Name


class TextFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")

    @model_validator(mode="after")
    def _has_schema(self) -> "TextFormat":
        found = {"name": self.name, "description": self.description, "strict": self.strict, "schema": self.schema_}
        given = [key for key, value in found.items() if value is not None]
        if self.type == "json_schema" and self.schema_ is None:
            raise ValueError("schema is missing; put the schema there")
        if self.type != "json_schema" and given:
            raise ValueError(
                f'has {given[0]}, but its type is "{self.type}"; make it "json_schema" or remove {given[0]}'
            )
        return self


class Text(Strict):
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(Strict):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: NoEffect = None
    generate_summary: NoEffect = None


_CACHED = Effectless("prefixes are cached without it")
_VENDORS = Effectless("about the vendor's own service")


class Body(GeneratingOptions):
    """The fields of `body`."""

    input: Annotated[str, Field(min_length=1)] | Annotated[list[Item], Field(min_length=1)]
    model: Name | None = None
    instructions: str | None = None
    max_output_tokens: Annotated[Whole, Field(ge=1, le=TOKENS_MAX)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Whole, Field(ge=-1, le=TOKENS_MAX)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    seed: Annotated[Whole, Field(ge=INT64_MIN, le=INT64_MAX)] | None = None
    stop: Name | list[Name] | None = None
    ignore_eos: bool = False
    chat_template_kwargs: TemplateArguments | None = None
    top_logprobs: NumLogprobs | None = None
    include: list[Name] | None = None
    text: Text | None = None
    reasoning: Reasoning | None = None
    include_reasoning: bool | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    parallel_tool_calls: bool | None = None

    metadata: Annotated[Any, Effectless("a label for the vendor")] = None
    user: Annotated[Any, Effectless("a label for the vendor")] = None
    safety_identifier: Annotated[Any, Effectless("a label for the vendor")] = None
    max_tool_calls: Annotated[Any, Effectless("about tools that the vendor runs itself")] = None
    prompt_cache_key: Annotated[Any, _CACHED] = None
    prompt_cache_options: Annotated[Any, _CACHED] = None
    prompt_cache_retention: Annotated[Any, _CACHED] = None
    service_tier: Annotated[Any, _VENDORS] = None
    store: Annotated[Any, _VENDORS] = None
    stream_options: Annotated[Any, Effectless("a batch does not stream")] = None

    # Rejected, except with a value that has no effect.
    access_programs: Annotated[Any, _VENDOR_ALONE] = None
    background: Annotated[Any, UnsupportedKey((None, False), "background work is not supported; remove it")] = None
    background_options: Annotated[Any, _VENDOR_ALONE] = None
    context_management: Annotated[Any, _VENDOR_ALONE] = None
    enable_response_messages: Annotated[Any, UnsupportedKey((None, False), "is not supported; remove it")] = None
    image: Annotated[Any, _VENDOR_ALONE] = None
    media_io_kwargs: Annotated[Any, _VENDOR_ALONE] = None
    moderation: Annotated[Any, _VENDOR_ALONE] = None
    previous_input_messages: Annotated[Any, UnsupportedKey((None,), _ALONE)] = None
    conversation: Annotated[Any, UnsupportedKey((None,), _ALONE)] = None
    previous_response_id: Annotated[Any, UnsupportedKey((None,), _ALONE)] = None
    prompt: Annotated[Any, UnsupportedKey((None,), "stored prompts are not supported; use input and instructions")] = (
        None
    )
    stream: Annotated[
        Any, UnsupportedKey((None, False), "streaming is not supported in a batch; remove it or set it to false")
    ] = None
    truncation: Annotated[Any, UnsupportedKey((None, "disabled"), "use truncate_prompt_tokens")] = None

    @cached_property
    def chat(self) -> openai_chat.Body:
        """The same request as a chat completion."""
        return _chat_of(self)


def _more_problems(body: Body) -> list[Diagnostic]:
    """Those of the chat completion, with their places in this request."""
    wrong = [
        Diagnostic(("body", "input", n, "arguments"), "must be a string that contains a JSON object", "Change it.")
        for n, item in enumerate(body.input)
        if isinstance(item, Called) and not openai_chat.is_object(item.arguments)
    ]
    if not isinstance(body.input, str) and not any(_turns(item) for item in body.input):
        wrong.append(
            Diagnostic(("body", "input"), "has no message; add one", 'Add {"role": "user", "content": "..."}.')
        )
    if wrong:
        return wrong
    found = openai_chat.more_problems(body.chat)
    return [
        replace_field(
            problem,
            path=_place(body, problem.path),
            message=problem.message.replace("response_format", "text.format"),
            fix=problem.fix.replace("response_format", "text.format"),
        )
        for problem in found
    ]


def _place(body: Body, path: Path) -> Path:
    """Where something of the chat completion is in this request."""
    if path[:2] == ("body", "response_format"):
        return ("body", "text", "format")
    if path[:2] != ("body", "messages"):
        return path
    if isinstance(body.input, str) or not isinstance(path[2:3][0] if path[2:3] else None, int):
        return ("body", "input")
    items = [("body", "input", n) for n, item in enumerate(body.input) for _ in _turns(item)]
    at: list[Path] = ([("body", "instructions")] if body.instructions else []) + [*items]
    return (*at[int(path[2])], *_names_in(path[3:], at[int(path[2])], body))


def _names_in(rest: Path, item: Path, body: Body) -> Path:
    """A tool's result has other names for its keys."""
    if isinstance(body.input, str) or not isinstance(item[-1], int):
        return ()
    if isinstance(body.input[item[-1]], Returned) and rest:
        return ({"tool_call_id": "call_id", "content": "output"}.get(str(rest[0]), rest[0]), *rest[1:])
    return rest


def _to_request(custom_id: str, body: Body, defaults: Defaults) -> Request:
    return replace(openai_chat.to_request(custom_id, body.chat, defaults), form="response")


@cache
def _shared_keys() -> frozenset[str]:
    """The keys that mean the same in a chat completion, as they are."""
    own = {"tools", "tool_choice", *rules_of(Body, UnsupportedKey)}
    return frozenset((Body.model_fields.keys() & openai_chat.Body.model_fields.keys()) - own)


def _chat_of(body: Body) -> openai_chat.Body:
    chat = body.model_dump(include=set(_shared_keys()), by_alias=True, exclude_unset=True)
    said = {"role": "system", "content": body.instructions}
    given = [Spoken(role="user", content=body.input)] if isinstance(body.input, str) else body.input
    chat["messages"] = ([said] if body.instructions else []) + [turn for item in given for turn in _turns(item)]
    optional = {
        "max_completion_tokens": body.max_output_tokens,
        "reasoning_effort": body.reasoning and body.reasoning.effort,
        "verbosity": body.text and body.text.verbosity,
        "response_format": None if body.text is None or body.text.format is None else _format(body.text.format),
        "tools": None if body.tools is None else [_tool(tool) for tool in body.tools],
        "tool_choice": _choice(body.tool_choice),
        "logprobs": True if body.top_logprobs or _LOGPROBS in (body.include or ()) else None,
    }
    return openai_chat.Body.model_validate(chat | {key: value for key, value in optional.items() if value is not None})


def _turns(item: Spoken | Called | Returned | Thought) -> list[dict[str, Any]]:
    if isinstance(item, Called):
        call = {"id": item.call_id, "function": {"name": item.name, "arguments": item.arguments}}
        return [{"role": "assistant", "tool_calls": [call]}]
    if isinstance(item, Returned):
        return [{"role": "tool", "tool_call_id": item.call_id, "content": _content(item.output)}]
    return [] if isinstance(item, Thought) else [{"role": item.role, "content": _content(item.content)}]


def _content(content: str | list[AnyPart]) -> Any:
    return content if isinstance(content, str) else [_part(part) for part in content]


def _part(part: AnyPart) -> dict[str, Any]:
    return {"type": "text", "text": part.text} if isinstance(part, Part) else part.model_dump(exclude_unset=True)


def _format(given: TextFormat) -> dict[str, Any]:
    if given.type != "json_schema":
        return {"type": given.type}
    form = given.model_dump(by_alias=True, exclude_unset=True, exclude={"type"})
    return {"type": "json_schema", "json_schema": form}


def _tool(tool: FunctionTool) -> dict[str, Any]:
    return {"type": "function", "function": tool.model_dump(exclude_unset=True, exclude={"type"})}


def _choice(given: str | NamedFunction | None) -> Any:
    return {"type": "function", "function": {"name": given.name}} if isinstance(given, NamedFunction) else given


FORMAT = Format(url=URL, plain=Body, body=Body, to_request=_to_request, more_problems=_more_problems)
