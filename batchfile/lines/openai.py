"""OpenAI's `body` of a chat completion with vLLM's extra sampling keys, and what a Request makes of it."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from batchfile.lines.chat import SEED_MAX, SEED_MIN, TOKENS_MAX, Strict, TextBlock, Unserved, join_turns, text_of
from batchfile.lines.findings import Finding
from batchfile.lines.tools import (
    FunctionCall,
    FunctionChoice,
    FunctionTool,
    call_problems,
    calls_of,
    choice_problems,
    openai_tools,
)
from batchfile.words import Defaults, Message, Request, Role, Sampling

URL = "/v1/chat/completions"
METHOD = "POST"
TEMPERATURE = 1.0  # OpenAI's own, where a body says none
CHOICES_MAX = 128  # OpenAI's own

_Stop = Annotated[str, Field(min_length=1)]


class Turn(Strict):
    """The keys that are null here come with answers which are sent back as history."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextBlock], Field(min_length=1)] | None = None
    name: Any = None
    annotations: Any = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    reasoning: Any = None
    reasoning_content: Any = None
    tool_calls: list[FunctionCall] | None = None
    tool_call_id: str | None = None


class JsonSchema(Strict):
    name: Any = None
    description: Any = None
    strict: Any = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> "ResponseFormat":
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("json_schema is missing; put the schema there")
        return self

    @property
    def schema_or_none(self) -> dict[str, Any] | None:
        if self.type == "text":
            return None
        return (self.json_schema.schema_ if self.json_schema else None) or {}


class StructuredOutputs(Strict):
    json_: dict[str, Any] = Field(alias="json")


class Body(Strict):
    """What may stand in `body`."""

    messages: Annotated[list[Turn], Field(min_length=1)]
    model: Annotated[str, Field(min_length=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=TOKENS_MAX)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=TOKENS_MAX)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=CHOICES_MAX)] | None = None
    stop: _Stop | list[_Stop] | None = None
    seed: Annotated[int, Field(ge=SEED_MIN, le=SEED_MAX)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    response_format: ResponseFormat | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None

    # vLLM's own.
    top_k: Annotated[int, Field(ge=-1, le=TOKENS_MAX)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    ignore_eos: bool = False
    structured_outputs: StructuredOutputs | None = None

    # Accepted and ignored: they change where and how a hosted service works, not the text.
    metadata: Any = None
    prediction: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    reasoning_effort: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    store: Any = None
    stream_options: Any = None
    user: Any = None
    verbosity: Any = None

    # Refused, unless they ask for nothing: see UNSERVED.
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    guided_json: Any = None
    logit_bias: Any = None
    logprobs: Any = None
    modalities: Any = None
    stream: Any = None
    top_logprobs: Any = None
    web_search_options: Any = None


_TOOLS = "is an old form that is not served; use tools"
_TOOLS_FIX = "Use tools and tool_choice."
_SCHEMA_FIX = "Put the schema into response_format.json_schema.schema."

UNSERVED: dict[str, Unserved] = {
    "audio": Unserved((None,), "audio is not served; remove it", "Remove it."),
    "function_call": Unserved((None, "none", "auto"), _TOOLS, _TOOLS_FIX),
    "functions": Unserved((None, []), _TOOLS, _TOOLS_FIX),
    "guided_json": Unserved((None,), "use response_format of type json_schema instead", _SCHEMA_FIX),
    "logit_bias": Unserved((None, {}), "logit_bias is not served; remove it", "Remove it."),
    "logprobs": Unserved((None, False), "logprobs are not served; remove it or set it to false", "Remove it."),
    "modalities": Unserved((None, ["text"]), 'only ["text"] is served; remove it', "Remove it."),
    "stream": Unserved((None, False), "a batch does not stream; remove it or set it to false", "Set it to false."),
    "top_logprobs": Unserved((None, 0), "logprobs are not served; remove it", "Remove it."),
    "web_search_options": Unserved((None,), "web search is not served; remove it", "Remove it."),
}

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}

# Keys that need a second look, for what a model of each alone can not say.
CHECKED = frozenset({*UNSERVED, "tools", "tool_choice"})


def is_plain(body: Body) -> bool:
    """Nothing but text in every turn: there is nothing more to check."""
    for turn in body.messages:
        if turn.content is None or turn.tool_calls is not None or turn.role == "tool":
            return False
    return CHECKED.isdisjoint(body.model_fields_set)


def tool_problems(body: Body) -> list[Finding]:
    tools = openai_tools(body.tools, body.tool_choice, body.parallel_tool_calls)
    is_forced = body.tool_choice not in (None, "none", "auto")
    return call_problems(body.messages, "body") + choice_problems(tools, is_forced=is_forced, root="body")


def _message(turn: Turn) -> Message:
    content = turn.content
    text = content if isinstance(content, str) else text_of(content or "")
    if turn.tool_calls is None and turn.role != "tool":
        return Message(_ROLES[turn.role], text)
    return Message(_ROLES[turn.role], text, calls_of(turn.tool_calls or []), turn.tool_call_id)


def to_request(custom_id: str, body: Body, defaults: Defaults) -> Request:
    # The newer name wins where a body carries both, as it does for the hosted service.
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    temperature = body.temperature
    if temperature is None:
        temperature = TEMPERATURE if defaults.temperature is None else defaults.temperature
    return Request(
        custom_id=custom_id,
        messages=join_turns([_message(turn) for turn in body.messages]),
        model=body.model or defaults.model,
        tools=None if body.tools is None else openai_tools(body.tools, body.tool_choice, body.parallel_tool_calls),
        sampling=Sampling(
            max_tokens=defaults.max_tokens if max_tokens is None else max_tokens,
            is_max_tokens_given=max_tokens is not None,
            temperature=temperature,
            top_p=body.top_p,
            top_k=None if body.top_k in {-1, 0} else body.top_k,  # both mean: all tokens
            min_p=body.min_p,
            stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
            seed=body.seed,
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            repetition_penalty=body.repetition_penalty,
            ignore_eos=body.ignore_eos,
            json_schema=_schema(body),
            num_choices=body.n or 1,
        ),
    )


def _schema(body: Body) -> dict[str, Any] | None:
    if body.structured_outputs is not None:
        return body.structured_outputs.json_
    return None if body.response_format is None else body.response_format.schema_or_none
