"""The native format: `params`, a superset of Anthropic's Messages API, and its conversion to a Request."""

from dataclasses import replace as replace_field
from typing import Annotated, Any, Literal, NamedTuple

from msgspec.structs import replace
from pydantic import Field, ValidationInfo, field_validator

from batchfile.errors import InvalidRequest
from batchfile.lines.diagnostics import Diagnostic, Path, shown
from batchfile.lines.formats.media import DocumentBlock, ImageBlock, misplaced_media, spoken
from batchfile.lines.formats.options import (
    CHOICES_MAX,
    ChatOptions,
    chat_logprobs,
    guide_of,
    json_schema_of,
    option_problems,
    options_of,
    sent_options,
)
from batchfile.lines.formats.shared import (
    CHECKED,
    SEED_MAX,
    SEED_MIN,
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
    never,
    text_of,
    unanswered,
    unknown_call,
    without_user,
)
from batchfile.request_options import Options
from batchfile.types import Defaults, Message, Request, Role, Sampling, Tool, ToolCall, Tools

_GEO = "choosing where the model runs is not supported; remove it (the model runs where its pool was started)"

TEMPERATURE = 0.2  # the contract of stages for a `params` line without a temperature


class ToolDefinition(Strict):
    """A tool in Anthropic's format."""

    type: Literal["custom"] | None = None
    name: Name
    input_schema: dict[str, Any]
    description: str | None = None
    allowed_callers: Annotated[Any, never('only ["direct"] is supported; remove it', ["direct"])] = None
    cache_control: NoEffect = None
    defer_loading: Annotated[Any, never("deferred loading is not supported; remove it", False)] = None
    eager_input_streaming: NoEffect = None
    input_examples: Annotated[Any, never("is not supported; put the examples into description", [])] = None
    strict: bool | None = None

    @field_validator("type", mode="before")
    @classmethod
    def _is_the_callers(cls, kind: object) -> object:
        if isinstance(kind, str) and kind != "custom":
            raise ValueError(f'server tools such as {shown(kind)} are not supported; only "custom" tools are')
        return kind


class ToolChoice(Strict):
    type: Literal["auto", "any", "tool", "none"]
    name: Name | None = None
    disable_parallel_tool_use: bool | None = None

    @field_validator("name")
    @classmethod
    def _is_of_a_tool(cls, name: str | None, info: ValidationInfo) -> str | None:
        if name is not None and info.data.get("type", "tool") != "tool":
            raise ValueError('is only allowed with the type "tool"; remove it, or change the type')
        return name


class ToolUseBlock(Strict):
    type: Literal["tool_use"]
    id: Name
    name: Name
    input: dict[str, Any]
    cache_control: NoEffect = None
    caller: NoEffect = None
    toolset_name: NoEffect = None


class ToolResultBlock(Strict):
    type: Literal["tool_result"]
    tool_use_id: Name
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None
    cache_control: NoEffect = None
    toolset_name: NoEffect = None

    @property
    def text(self) -> str:
        """What the model reads. Chat templates have no field for a failed tool, so the text says it."""
        text = text_of(self.content or "")
        return f"Error: {text}" if self.is_error else text


class ThinkingBlock(Strict):
    """Thinking of an earlier answer, which is not shown to the model."""

    type: Literal["thinking"]
    thinking: str
    signature: NoEffect = None


class RedactedThinkingBlock(Strict):
    type: Literal["redacted_thinking"]
    data: NoEffect = None


Block = Annotated[
    TextBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedThinkingBlock | ImageBlock | DocumentBlock,
    Field(discriminator="type"),
]


class Turn(Strict):
    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[Block], Field(min_length=1)]


class JsonSchemaFormat(Strict):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Strict):
    format: JsonSchemaFormat | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None


class Thinking(Strict):
    type: Literal["enabled", "adaptive", "between_tools", "disabled"]
    budget_tokens: Annotated[Whole, Field(ge=0, le=TOKENS_MAX)] | None = None
    display: Annotated[Any, never('only "summarized" is supported; remove it', "summarized")] = None

    @field_validator("budget_tokens")
    @classmethod
    def _is_of_thinking(cls, budget: int | None, info: ValidationInfo) -> int | None:
        if budget is not None and info.data.get("type") == "disabled":
            raise ValueError('has no effect with the type "disabled"; remove it')
        return budget


class PlainParams(Strict):
    """The fields that most `params` have alone."""

    messages: Annotated[list[Turn], Field(min_length=1)]
    model: Name | None = None
    system: str | list[TextBlock] | None = None
    max_tokens: Annotated[Whole, Field(ge=1, le=TOKENS_MAX)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Whole, Field(ge=-1, le=TOKENS_MAX)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop_sequences: list[Name] | None = None
    seed: Annotated[Whole, Field(ge=SEED_MIN, le=SEED_MAX)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    ignore_eos: bool = False
    output_config: OutputConfig | None = None
    output_format: JsonSchemaFormat | None = None  # the older name of output_config.format
    thinking: Thinking | None = None
    tools: list[ToolDefinition] | None = None
    tool_choice: ToolChoice | None = None

    @field_validator("output_format")
    @classmethod
    def _is_the_only_form(cls, given: JsonSchemaFormat | None, info: ValidationInfo) -> JsonSchemaFormat | None:
        output = info.data.get("output_config")
        if given is not None and output is not None and output.format not in (None, given):
            raise ValueError("differs from output_config.format; keep one of them")
        return given


_LABEL = Effectless("a label for the vendor")


class Params(PlainParams, ChatOptions):
    """The fields of `params`."""

    n: Annotated[Whole, Field(ge=1, le=CHOICES_MAX)] | None = None

    cache_control: Annotated[Any, Effectless("prefixes are cached without it")] = None
    diagnostics: Annotated[Any, Effectless("about the vendor's own service")] = None
    metadata: Annotated[Any, _LABEL] = None
    service_tier: Annotated[Any, Effectless("about the vendor's own service")] = None
    user_profile_id: Annotated[Any, _LABEL] = None
    workspace_id: Annotated[Any, _LABEL] = None
    anthropic_version: Annotated[Any, Effectless("about the vendor's own service")] = None  # of cloud platforms

    # Rejected, except with a value that has no effect.
    betas: Annotated[Any, UnsupportedKey((None, []), "beta features are not supported; remove it")] = None
    compaction: Annotated[Any, UnsupportedKey((None,), "compaction is not supported; remove it")] = None
    container: Annotated[Any, UnsupportedKey((None,), "containers are not supported; remove it")] = None
    context_management: Annotated[Any, UnsupportedKey((None, {}), "context management is not supported; remove it")] = (
        None
    )
    fallbacks: Annotated[Any, UnsupportedKey((None, []), "fallbacks are not supported; remove it")] = None
    inference_geo: Annotated[Any, UnsupportedKey((None, "global"), _GEO)] = None
    mcp_servers: Annotated[Any, UnsupportedKey((None, []), "MCP servers are not supported; remove it")] = None
    speed: Annotated[Any, UnsupportedKey((None, "standard"), 'only "standard" is supported; remove it')] = None
    stream: Annotated[
        Any, UnsupportedKey((None, False), "streaming is not supported in a batch; remove it or set it to false")
    ] = None


def _is_plain(params: PlainParams) -> bool:
    """Whether it has nothing to check: no options or tools, turns of text only, and one that is not a system turn."""
    if type(params) is not PlainParams or not CHECKED.isdisjoint(params.model_fields_set):
        return False
    is_spoken = False
    for turn in params.messages:
        is_spoken |= turn.role != "system"
        if not isinstance(turn.content, str) and any(not isinstance(block, TextBlock) for block in turn.content):
            return False
    return is_spoken


def _more_problems(params: PlainParams) -> list[Diagnostic]:
    if _is_plain(params):
        return []
    found = without_user(params.messages, "params") + misplaced_media(params.messages, "params")
    found += _tool_problems(params)
    if type(params) is PlainParams:
        return found
    form = _form(params)
    return found + option_problems(sent_options(params, PlainParams), "params", [] if form is None else [form[0]])


def _tool_problems(params: PlainParams) -> list[Diagnostic]:
    choice = params.tool_choice
    tools = tools_of(params.tools, choice)
    is_forced = choice is not None and choice.type in {"any", "tool"}
    return _block_problems(params.messages) + choice_problems(tools, is_forced=is_forced, root="params")


def tools_of(given: list[ToolDefinition] | None, choice: ToolChoice | None) -> Tools | None:
    """None if there are no tools, or the model may not call any."""
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


def _turns(role: Role, blocks: list[Any]) -> list[Message]:
    """The blocks of a turn as messages: one for each tool result, then one with the text and the tool calls."""
    turns: list[Message] = []
    said: list[Any] = []
    calls: list[ToolCall] = []
    for block in blocks:
        if isinstance(block, TextBlock | ImageBlock | DocumentBlock):
            said.append(block)
        elif isinstance(block, ToolUseBlock):
            calls.append(ToolCall(block.id, block.name, block.input))
        elif isinstance(block, ToolResultBlock):
            turns.append(Message("tool", block.text, call_id=block.tool_use_id))
    if said or not turns:
        turn = spoken(role, said)
        turns.append(Message(role, turn.content, tuple(calls), parts=turn.parts))
    return turns


def _block_problems(turns: list[Any]) -> list[Diagnostic]:
    """Tool calls and tool results that are in the wrong turn or do not match each other."""
    diagnostics: list[Diagnostic] = []
    called: set[str] = set()
    for n, turn in enumerate(turns):
        for at, block in enumerate(turn.content if isinstance(turn.content, list) else ()):
            place: Path = ("params", "messages", n, "content", at)
            if isinstance(block, ToolUseBlock):
                called.add(block.id)
                if turn.role != "assistant":
                    diagnostics.append(misplaced(place, "tool_use", "an assistant"))
            elif isinstance(block, ToolResultBlock):
                if turn.role != "user":
                    diagnostics.append(misplaced(place, "tool_result", "a user"))
                elif block.tool_use_id not in called:
                    diagnostics.append(unknown_call((*place, "tool_use_id"), block.tool_use_id))
    last = turns[-1].content
    if isinstance(last, list) and any(isinstance(block, ToolUseBlock) for block in last):
        diagnostics.append(unanswered(("params", "messages", len(turns) - 1)))
    return diagnostics


def _to_request(custom_id: str, params: PlainParams, defaults: Defaults) -> Request:
    """Raises: InvalidRequest if max_tokens is missing and required."""
    if params.max_tokens is None and defaults.needs_max_tokens:
        raise InvalidRequest("params.max_tokens: is missing; set the maximum number of output tokens")
    turns = [Message("system", text_of(params.system))] if params.system else []
    for turn in params.messages:
        if isinstance(turn.content, str):
            turns.append(Message(turn.role, turn.content))
        else:
            turns += _turns(turn.role, turn.content)
    temperature = params.temperature
    if temperature is None:
        temperature = TEMPERATURE if defaults.temperature is None else defaults.temperature
    asked = _asked(params)
    return Request(
        custom_id=custom_id,
        messages=join_turns(turns),
        model=params.model or defaults.model,
        tools=None if params.tools is None else tools_of(params.tools, params.tool_choice),
        is_thinking=None if params.thinking is None else params.thinking.type != "disabled",
        sampling=Sampling(
            max_tokens=defaults.max_tokens if params.max_tokens is None else params.max_tokens,
            is_max_tokens_given=params.max_tokens is not None,
            temperature=temperature,
            top_p=params.top_p,
            top_k=params.top_k,  # -1 and 0: all tokens, whatever the model's default is
            min_p=params.min_p,
            stop=tuple(params.stop_sequences or ()),
            seed=params.seed,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            repetition_penalty=params.repetition_penalty,
            ignore_eos=params.ignore_eos,
            json_schema=asked.json_schema,
            num_choices=asked.num_choices,
        ),
        options=asked.options,
    )


class _Asked(NamedTuple):
    json_schema: dict[str, Any] | None
    num_choices: int = 1
    options: Options | None = None


def _asked(params: PlainParams) -> _Asked:
    form, output, thinking = _form(params), params.output_config, params.thinking
    schema = None if form is None else form[1].schema_
    effort, budget = output and output.effort, thinking and thinking.budget_tokens
    if type(params) is PlainParams and effort is None and budget is None:
        return _Asked(schema)
    sent = sent_options(params, PlainParams)
    num_choices = sent.pop("n", 1)
    sent |= {} if effort is None else {"reasoning_effort": effort}
    sent |= {} if budget is None else {"thinking_token_budget": budget}
    guide = guide_of(sent)
    return _Asked(
        schema if form is not None else json_schema_of(guide),
        num_choices,
        options_of(params, sent, guide, chat_logprobs(sent)) if sent else None,
    )


def _form(params: PlainParams) -> tuple[str, JsonSchemaFormat] | None:
    """The format of the answer, with its key."""
    output = params.output_config
    if output is not None and output.format is not None:
        return "output_config", output.format
    return None if params.output_format is None else ("output_format", params.output_format)


def _to_message(custom_id: str, params: PlainParams, defaults: Defaults) -> Request:
    return replace(_to_request(custom_id, params, defaults), form="message")


FORMAT = Format(url="", plain=PlainParams, body=Params, to_request=_to_request, more_problems=_more_problems)
# Anthropic's Message as the `body` of a line in OpenAI's format.
MESSAGES = replace_field(FORMAT, url="/v1/messages", to_request=_to_message)
