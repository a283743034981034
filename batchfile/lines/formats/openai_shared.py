"""Shared by OpenAI's formats: sampling parameters, including vLLM's extra ones, and inputs of text or token ids."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from batchfile.lines.diagnostics import shown
from batchfile.lines.formats.shared import SEED_MAX, SEED_MIN, TOKENS_MAX, Name, NoEffect, Strict, UnsupportedKey, Whole
from batchfile.types import Defaults, Input, LimitKey, Sampling

TEMPERATURE = 1.0  # OpenAI's default
_GUIDED = ("use response_format of type json_schema instead", "Put the schema into response_format.json_schema.schema.")
CHOICES_MAX = 128  # OpenAI's limit


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
        if self.type != "json_schema" and self.json_schema is not None:
            raise ValueError(
                f'has a json_schema, but its type is "{self.type}"; make it "json_schema" or remove the schema'
            )
        return self

    @property
    def schema_or_none(self) -> dict[str, Any] | None:
        if self.type == "text":
            return None
        return (self.json_schema.schema_ if self.json_schema else None) or {}


class StructuredOutputs(Strict):
    json_: dict[str, Any] = Field(alias="json")


class Sampled(Strict):
    model: Name | None = None
    max_tokens: Annotated[Whole, Field(ge=1, le=TOKENS_MAX)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[Whole, Field(ge=1, le=CHOICES_MAX)] | None = None
    stop: Name | list[Name] | None = None
    seed: Annotated[Whole, Field(ge=SEED_MIN, le=SEED_MAX)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    response_format: ResponseFormat | None = None

    # vLLM's extra parameters.
    top_k: Annotated[Whole, Field(ge=-1, le=TOKENS_MAX)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    ignore_eos: bool = False
    structured_outputs: StructuredOutputs | None = None

    @field_validator("structured_outputs")
    @classmethod
    def _is_the_only_form(cls, given: StructuredOutputs | None, info: ValidationInfo) -> StructuredOutputs | None:
        if given is not None and info.data.get("response_format") is not None:
            raise ValueError("conflicts with response_format; keep one of them")
        return given

    stream_options: NoEffect = None
    user: NoEffect = None

    # Rejected, except with a value that has no effect.
    guided_json: Annotated[Any, UnsupportedKey((None,), *_GUIDED)] = None
    logit_bias: Annotated[Any, UnsupportedKey((None, {}), "logit_bias is not supported; remove it")] = None
    logprobs: Annotated[
        Any, UnsupportedKey((None, False), "logprobs are not supported; remove it or set it to false")
    ] = None
    stream: Annotated[
        Any, UnsupportedKey((None, False), "streaming is not supported in a batch; remove it or set it to false")
    ] = None


def sampling_of(
    body: Sampled,
    defaults: Defaults,
    max_tokens: int | None,
    max_tokens_else: int,
    limit_key: LimitKey = "max_tokens",
) -> Sampling:
    temperature = body.temperature
    if temperature is None:
        temperature = TEMPERATURE if defaults.temperature is None else defaults.temperature
    return Sampling(
        max_tokens=max_tokens_else if max_tokens is None else max_tokens,
        is_max_tokens_given=max_tokens is not None,
        limit_key=limit_key,
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
        schema_form=_schema_form(body),
        num_choices=body.n or 1,
    )


def _schema(body: Sampled) -> dict[str, Any] | None:
    if body.structured_outputs is not None:
        return body.structured_outputs.json_
    return None if body.response_format is None else body.response_format.schema_or_none


def _schema_form(body: Sampled) -> dict[str, Any] | None:
    asked = body.response_format
    if body.structured_outputs is not None or asked is None or asked.type != "json_schema" or not asked.json_schema:
        return None
    return asked.json_schema.model_dump(by_alias=True, exclude_unset=True)


TOKEN_ID_MAX = 2**31 - 1


def inputs_of(given: Any) -> tuple[Input, ...]:
    """Raises: ValueError with a message for the user."""
    if given in ("", []):
        raise ValueError("must not be empty")
    if isinstance(given, list) and isinstance(given[0], list | str):
        return tuple([_input(one, f"item [{number}] ") for number, one in enumerate(given)])
    return (_input(given, ""),)


def _input(given: Any, place: str) -> Input:
    if isinstance(given, str | list) and not given:
        raise ValueError(f"{place}must not be empty")
    if isinstance(given, str):
        return given
    if isinstance(given, list) and all(_is_token(item) for item in given):
        return tuple(given)
    raise ValueError(f"{place}must be a string or a list of token ids, got {shown(given)}")


def _is_token(item: Any) -> bool:
    return type(item) is int and 0 <= item <= TOKEN_ID_MAX
