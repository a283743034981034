"""Shared by OpenAI's formats: sampling parameters, including vLLM's extra ones, and inputs of text or token ids."""

import json
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from batchfile.lines.diagnostics import shown
from batchfile.lines.formats.options import (
    CHOICES_MAX,
    chat_logprobs,
    guide_of,
    json_schema_of,
    options_of,
    sent_options,
)
from batchfile.lines.formats.shared import (
    SEED_MAX,
    SEED_MIN,
    TOKENS_MAX,
    Effectless,
    Name,
    Strict,
    UnsupportedKey,
    Whole,
)
from batchfile.request_options import Options
from batchfile.types import Defaults, Input, LimitKey, Sampling

TEMPERATURE = 1.0  # OpenAI's default


class JsonSchema(Strict):
    name: Any = None
    description: Any = None
    strict: Any = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class LegacyTag(Strict):
    begin: str
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    end: str


class ResponseFormat(Strict):
    """`format`, or `structures` with `triggers`: of the type structural_tag, which is vLLM's."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchema | None = None
    format: dict[str, Any] | None = None
    structures: list[LegacyTag] | None = None
    triggers: list[str] | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> "ResponseFormat":
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("json_schema is missing; put the schema there")
        if self.type != "json_schema" and self.json_schema is not None:
            raise ValueError(
                f'has a json_schema, but its type is "{self.type}"; make it "json_schema" or remove the schema'
            )
        given = [key for key in ("format", "structures", "triggers") if getattr(self, key) is not None]
        if given not in ([["format"], ["structures", "triggers"]] if self.type == "structural_tag" else [[]]):
            raise ValueError(
                "the type structural_tag needs format alone, or structures and triggers; no other type has them"
            )
        return self

    @property
    def schema_or_none(self) -> dict[str, Any] | None:
        if self.type not in ("json_object", "json_schema"):
            return None
        return (self.json_schema.schema_ if self.json_schema else None) or {}


class PlainSampled(Strict):
    """What most requests set."""

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

    # vLLM's.
    top_k: Annotated[Whole, Field(ge=-1, le=TOKENS_MAX)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    ignore_eos: bool = False


class Ignored(Strict):
    """What every request for text may have without an effect, or must not have."""

    stream_options: Annotated[Any, Effectless("a batch does not stream")] = None
    user: Annotated[Any, Effectless("a label for the vendor")] = None
    stream: Annotated[
        Any, UnsupportedKey((None, False), "streaming is not supported in a batch; remove it or set it to false")
    ] = None


class Asked(NamedTuple):
    """What a body asks for, in the form that engines take."""

    sampling: Sampling
    options: Options | None


def asked_of(
    body: PlainSampled,
    plain: type[PlainSampled],
    defaults: Defaults,
    max_tokens: int | None,
    max_tokens_else: int,
    limit_key: LimitKey = "max_tokens",
) -> Asked:
    """`plain`: the model of bodies without options."""
    sent = {} if type(body) is plain else sent_options(body, plain)
    if body.response_format is not None and body.response_format.type == "structural_tag":
        sent["response_format"] = body.response_format.model_dump(by_alias=True, exclude_unset=True)
    if not sent:
        return Asked(_sampling_of(body, defaults, max_tokens, max_tokens_else, limit_key, None), None)
    guide = guide_of(sent)
    if "response_format" in sent:
        guide["structural_tag"] = json.dumps(sent["response_format"])
    logprobs = sent.get("logprobs")
    options = options_of(body, sent, guide, chat_logprobs(sent) if isinstance(logprobs, bool) else logprobs)
    sampling = _sampling_of(body, defaults, max_tokens, max_tokens_else, limit_key, json_schema_of(guide))
    return Asked(sampling, options)


def format_keys(body: PlainSampled) -> list[str]:
    """The key that says what the answer must match, if the body has it."""
    return [] if body.response_format is None or body.response_format.type == "text" else ["response_format"]


def _sampling_of(
    body: PlainSampled,
    defaults: Defaults,
    max_tokens: int | None,
    max_tokens_else: int,
    limit_key: LimitKey,
    guided_schema: dict[str, Any] | None,
) -> Sampling:
    own_schema = None if body.response_format is None else body.response_format.schema_or_none
    temperature = body.temperature
    if temperature is None:
        temperature = TEMPERATURE if defaults.temperature is None else defaults.temperature
    return Sampling(
        max_tokens=max_tokens_else if max_tokens is None else max_tokens,
        is_max_tokens_given=max_tokens is not None,
        limit_key=limit_key,
        temperature=temperature,
        top_p=body.top_p,
        top_k=body.top_k,  # -1 and 0: all tokens, whatever the model's default is
        min_p=body.min_p,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        seed=body.seed,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=body.repetition_penalty,
        ignore_eos=body.ignore_eos,
        json_schema=guided_schema if own_schema is None else own_schema,
        schema_form=_schema_form(body),
        num_choices=body.n or 1,
    )


def _schema_form(body: PlainSampled) -> dict[str, Any] | None:
    asked = body.response_format
    if asked is None or asked.type != "json_schema" or not asked.json_schema:
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
        return tuple(map(int, given))
    raise ValueError(f"{place}must be a string or a list of token ids, got {shown(given)}")


def _is_token(item: Any) -> bool:
    """1.0 is 1, because JSON has only one number type."""
    is_whole = type(item) is int or (type(item) is float and item.is_integer())
    return is_whole and 0 <= item <= TOKEN_ID_MAX
