"""Our own `params`: a superset of Anthropic's Messages, and what a Request makes of it."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from batchfile.errors import InvalidRequest
from batchfile.lines.chat import (
    SEED_MAX,
    SEED_MIN,
    TOKENS_MAX,
    NoEffect,
    Strict,
    TextBlock,
    Unserved,
    Whole,
    join_turns,
    never,
    text_of,
    without_user,
)
from batchfile.lines.diagnostics import Diagnostic
from batchfile.lines.tools import (
    Block,
    ToolChoice,
    ToolDefinition,
    anthropic_tools,
    block_problems,
    choice_problems,
    turns_of_blocks,
)
from batchfile.types import Defaults, Message, Request, Sampling

_BUDGET = "a bound on thinking alone is not served; remove it, max_tokens bounds thinking and answer together"
_GEO = "a choice of where the model runs is not served; remove it, a pool runs where it was started"

TEMPERATURE = 0.2  # the stage contract: where a `params` line says none


class Turn(Strict):
    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[Block], Field(min_length=1)]


class JsonSchemaFormat(Strict):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Strict):
    format: JsonSchemaFormat | None = None
    effort: Annotated[Any, never("reasoning effort is not served; remove it")] = None


class Thinking(Strict):
    type: Literal["enabled", "adaptive", "between_tools", "disabled"]
    budget_tokens: Annotated[Any, never(_BUDGET)] = None
    display: Annotated[Any, never('only "summarized" is served; remove it', "summarized")] = None


class Params(Strict):
    """What may stand in `params`."""

    messages: Annotated[list[Turn], Field(min_length=1)]
    model: Annotated[str, Field(min_length=1)] | None = None
    system: str | list[TextBlock] | None = None
    max_tokens: Annotated[Whole, Field(ge=1, le=TOKENS_MAX)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Whole, Field(ge=-1, le=TOKENS_MAX)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop_sequences: list[Annotated[str, Field(min_length=1)]] | None = None
    seed: Annotated[Whole, Field(ge=SEED_MIN, le=SEED_MAX)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    ignore_eos: bool = False
    output_config: OutputConfig | None = None
    output_format: JsonSchemaFormat | None = None  # its older place
    thinking: Thinking | None = None
    tools: list[ToolDefinition] | None = None
    tool_choice: ToolChoice | None = None

    @field_validator("output_format")
    @classmethod
    def _is_the_only_form(cls, given: JsonSchemaFormat | None, info: ValidationInfo) -> JsonSchemaFormat | None:
        output = info.data.get("output_config")
        if given is not None and output is not None and output.format not in (None, given):
            raise ValueError("is given, and output_config.format is another; keep one of them")
        return given

    cache_control: NoEffect = None
    diagnostics: NoEffect = None
    metadata: NoEffect = None
    service_tier: NoEffect = None
    user_profile_id: NoEffect = None
    workspace_id: NoEffect = None

    # Refused, unless they ask for nothing: see UNSERVED.
    betas: Any = None
    compaction: Any = None
    container: Any = None
    context_management: Any = None
    fallbacks: Any = None
    inference_geo: Any = None
    mcp_servers: Any = None
    speed: Any = None
    stream: Any = None


UNSERVED: dict[str, Unserved] = {
    "betas": Unserved((None, []), "beta features are not served; remove it"),
    "compaction": Unserved((None,), "compaction is not served; remove it"),
    "container": Unserved((None,), "containers are not served; remove it"),
    "context_management": Unserved((None, {}), "context management is not served; remove it"),
    "fallbacks": Unserved((None, []), "fallbacks are not served; remove it"),
    "inference_geo": Unserved((None, "global"), _GEO),
    "mcp_servers": Unserved((None, []), "MCP servers are not served; remove it"),
    "speed": Unserved((None, "standard"), 'only "standard" is served; remove it'),
    "stream": Unserved((None, False), "a batch does not stream; remove it or set it to false"),
}


# Keys that need a second look, for what a model of each alone can not say.
CHECKED = frozenset({*UNSERVED, "tools", "tool_choice"})


def is_plain(params: Params) -> bool:
    """Nothing but text in every turn, one of them not the system's: there is nothing more to check."""
    is_spoken = False
    for turn in params.messages:
        is_spoken |= turn.role != "system"
        if not isinstance(turn.content, str) and any(not isinstance(block, TextBlock) for block in turn.content):
            return False
    return is_spoken and CHECKED.isdisjoint(params.model_fields_set)


def more_problems(params: Params) -> list[Diagnostic]:
    """What a model of each key alone can not say."""
    return without_user(params.messages, "params") + _tool_problems(params)


def _tool_problems(params: Params) -> list[Diagnostic]:
    choice = params.tool_choice
    tools = anthropic_tools(params.tools, choice)
    is_forced = choice is not None and choice.type in {"any", "tool"}
    return block_problems(params.messages, "params") + choice_problems(tools, is_forced=is_forced, root="params")


def to_request(custom_id: str, params: Params, defaults: Defaults) -> Request:
    """Raises: InvalidRequest where max_tokens is missing and must not be."""
    if params.max_tokens is None and defaults.needs_max_tokens:
        raise InvalidRequest("params.max_tokens: is missing; say how many tokens the answer may have")
    turns = [Message("system", text_of(params.system))] if params.system else []
    for turn in params.messages:
        if isinstance(turn.content, str):
            turns.append(Message(turn.role, turn.content))
        else:
            turns += turns_of_blocks(turn.role, turn.content)
    temperature = params.temperature
    if temperature is None:
        temperature = TEMPERATURE if defaults.temperature is None else defaults.temperature
    output = params.output_config
    form = params.output_format if output is None or output.format is None else output.format
    return Request(
        custom_id=custom_id,
        messages=join_turns(turns),
        model=params.model or defaults.model,
        tools=None if params.tools is None else anthropic_tools(params.tools, params.tool_choice),
        is_thinking=None if params.thinking is None else params.thinking.type != "disabled",
        sampling=Sampling(
            max_tokens=defaults.max_tokens if params.max_tokens is None else params.max_tokens,
            is_max_tokens_given=params.max_tokens is not None,
            temperature=temperature,
            top_p=params.top_p,
            top_k=None if params.top_k in {-1, 0} else params.top_k,  # both mean: all tokens
            min_p=params.min_p,
            stop=tuple(params.stop_sequences or ()),
            seed=params.seed,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            repetition_penalty=params.repetition_penalty,
            ignore_eos=params.ignore_eos,
            json_schema=None if form is None else form.schema_,
        ),
    )
