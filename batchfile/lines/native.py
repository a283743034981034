"""Our own `params`: a superset of Anthropic's, as a pydantic model, and what a Request makes of it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from batchfile.lines.chat import join_turns
from batchfile.words import Defaults, Message, Request, Sampling

TEMPERATURE = 0.2  # BRIEF: where a `params` line says none


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextBlock(Strict):
    type: Literal["text"]
    text: str
    cache_control: Any = None
    citations: Any = None


class Turn(Strict):
    role: Literal["user", "assistant", "system"]
    content: str | list[TextBlock]


class JsonSchemaFormat(Strict):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Strict):
    format: JsonSchemaFormat | None = None
    effort: Any = None


class Thinking(Strict):
    type: Literal["disabled"]


class Params(Strict):
    """What may stand in `params`. Keys that change nothing here are accepted and ignored."""

    messages: Annotated[list[Turn], Field(min_length=1)]
    model: str | None = None
    system: str | list[TextBlock] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop_sequences: list[Annotated[str, Field(min_length=1)]] | None = None
    seed: int | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    output_config: OutputConfig | None = None
    thinking: Thinking | None = None
    stream: Literal[False] | None = None
    metadata: Any = None
    cache_control: Any = None
    service_tier: Any = None
    inference_geo: Any = None
    user_profile_id: Any = None
    workspace_id: Any = None


def to_request(custom_id: str, params: Params, defaults: Defaults) -> Request:
    turns: list[Message] = []
    if params.system:
        turns.append(Message("system", _text(params.system)))
    turns.extend(Message(turn.role, _text(turn.content)) for turn in params.messages)
    schema = params.output_config.format.schema_ if params.output_config and params.output_config.format else None
    temperature = params.temperature
    if temperature is None:
        temperature = TEMPERATURE if defaults.temperature is None else defaults.temperature
    return Request(
        custom_id=custom_id,
        messages=join_turns(turns),
        model=params.model or defaults.model,
        sampling=Sampling(
            max_tokens=defaults.max_tokens if params.max_tokens is None else params.max_tokens,
            is_max_tokens_given=params.max_tokens is not None,
            temperature=temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            min_p=params.min_p,
            stop=tuple(params.stop_sequences or ()),
            seed=params.seed,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            repetition_penalty=params.repetition_penalty,
            json_schema=schema,
        ),
    )


def _text(content: str | list[TextBlock]) -> str:
    return content if isinstance(content, str) else "\n\n".join(block.text for block in content)


