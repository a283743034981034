"""The options of a request that few requests set, by vLLM's names: how to sample, to guide and to render the prompt.

The formats share these fields. A request without any of them is read by a smaller model (its format's PlainBody),
which takes less time.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal

import msgspec
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from batchfile.lines.diagnostics import Diagnostic, shown
from batchfile.lines.formats.shared import (
    TOKENS_MAX,
    Effectless,
    Name,
    OnlyEndpoints,
    Strict,
    UnsupportedKey,
    Whole,
    rules_of,
)
from batchfile.request_options import Guide, Options

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
TOKEN_DIGITS_MAX = 10
CHOICES_MAX = 128  # OpenAI's limit
SALT_CHARS_MAX = 1024  # vLLM's limit


def _token_key(given: str) -> str:
    """A token id as the key of an object, without leading zeros, so that each token has one."""
    if given != str(int(given) if given.isdecimal() and len(given) <= TOKEN_DIGITS_MAX else None):
        raise ValueError(f"must be a token id, got {shown(given)}")
    return given


TokenId = Annotated[Whole, Field(ge=0, le=TOKENS_MAX)]
TokenKey = Annotated[str, AfterValidator(_token_key)]
NumLogprobs = Annotated[Whole, Field(ge=-1, le=TOKENS_MAX)]  # -1: of all tokens; an engine has a limit of its own

# Arguments of the function that renders a template, which are not for the template itself.
_RESERVED = frozenset(
    {
        *("add_generation_prompt", "chat_template", "continue_final_message", "conversation", "documents", "messages"),
        *("max_length", "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "tokenize"),
        *("tokenizer_kwargs", "tools", "truncation"),
    }
)

_RENDERING = Effectless("about vLLM's endpoints that render a prompt without an answer")
_NOT_STREAMED = Effectless("a batch does not stream")
_DISAGGREGATED = UnsupportedKey((None, {}), "disaggregated serving is not supported; remove it")


def _template_arguments(given: dict[str, Any]) -> dict[str, Any]:
    wrong = sorted(_RESERVED & given.keys())
    if wrong:
        raise ValueError(f"must not contain {wrong[0]}, which is not a variable of the template; remove it")
    return given


def _parsed(given: Any) -> Any:
    """A JSON schema may be written as JSON text."""
    if not isinstance(given, str):
        return given
    try:
        return msgspec.json.decode(given)
    except (ValueError, RecursionError):
        raise ValueError("must be a JSON schema, as an object or as JSON text") from None


JsonSchema = Annotated[dict[str, Any], BeforeValidator(_parsed)]
Choices = Annotated[list[Name], Field(min_length=1)]


TemplateArguments = Annotated[dict[str, Any], AfterValidator(_template_arguments)]


class StructuredOutputs(Strict):
    json_: JsonSchema | None = Field(None, alias="json")
    regex: Name | None = None
    choice: Choices | None = None
    grammar: Name | None = None
    structural_tag: Name | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None
    whitespace_pattern: str | None = None


class RepetitionDetection(Strict):
    max_pattern_size: Annotated[Whole, Field(ge=0, le=TOKENS_MAX)] = 0
    min_pattern_size: Annotated[Whole, Field(ge=0, le=TOKENS_MAX)] = 0
    min_count: Annotated[Whole, Field(ge=0, le=TOKENS_MAX)] = 0


class PromptOptions(Strict):
    """Of every request."""

    truncate_prompt_tokens: Annotated[Whole, Field(ge=-1, le=TOKENS_MAX)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    add_special_tokens: bool | None = None
    priority: Annotated[Whole, Field(ge=INT64_MIN, le=INT64_MAX)] | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=SALT_CHARS_MAX)] | None = None

    request_id: Annotated[Any, Effectless("custom_id identifies the request")] = None
    mm_processor_kwargs: Annotated[Any, OnlyEndpoints("its processor of images and audio is set by its operator")] = (
        None
    )


class GeneratingOptions(PromptOptions):
    """Of every request for text."""

    logit_bias: dict[TokenKey, Annotated[float, Field(ge=-100, le=100)]] | None = None
    allowed_token_ids: Annotated[list[TokenId], Field(min_length=1)] | None = None
    stop_token_ids: list[TokenId] | None = None
    bad_words: list[Name] | None = None
    min_tokens: Annotated[Whole, Field(ge=0, le=TOKENS_MAX)] | None = None
    prompt_logprobs: NumLogprobs | None = None
    logprob_token_ids: Annotated[list[TokenId], Field(min_length=1)] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    repetition_detection: RepetitionDetection | None = None
    watermarking: bool | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    vllm_xargs: dict[str, str | Whole | float | list[str | Whole | float]] | None = None

    structured_outputs: StructuredOutputs | None = None
    guided_json: JsonSchema | None = None
    guided_regex: Name | None = None
    guided_choice: Choices | None = None
    guided_grammar: Name | None = None
    guided_whitespace_pattern: str | None = None

    session_id: Annotated[Any, Effectless("every request of a batch stands alone")] = None
    stream_interval: Annotated[Any, _NOT_STREAMED] = None
    return_token_offsets: Annotated[Any, _RENDERING] = None
    mm_payload: Annotated[Any, _RENDERING] = None
    return_mm_kwargs: Annotated[Any, _RENDERING] = None

    use_beam_search: Annotated[Any, OnlyEndpoints("it does not search beams", (False,))] = None
    length_penalty: Annotated[Any, OnlyEndpoints("it does not search beams", (1, 1.0))] = None
    guided_decoding_backend: Annotated[Any, OnlyEndpoints("its backend is set by its operator")] = None

    kv_transfer_params: Annotated[Any, _DISAGGREGATED] = None
    ec_transfer_params: Annotated[Any, _DISAGGREGATED] = None
    return_weight_versions: Annotated[
        Any, UnsupportedKey((None, False), "the version of the weights is not reported; remove it")
    ] = None
    routed_experts_prompt_start: Annotated[
        Any, UnsupportedKey((None, 0), "routed experts are not reported; remove it")
    ] = None


class ChatOptions(GeneratingOptions):
    """Of every conversation."""

    logprobs: bool | None = None
    top_logprobs: NumLogprobs | None = None
    chat_template_kwargs: TemplateArguments | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    documents: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    echo: bool | None = None

    chat_template: Annotated[Any, OnlyEndpoints("its chat template is set by its operator")] = None
    media_io_kwargs: Annotated[Any, OnlyEndpoints("its reading of images and audio is set by its operator")] = None

    return_prompt_text: Annotated[
        Any, UnsupportedKey((None, False), "the text of the prompt is not reported; remove it")
    ] = None


_SPACES = "guided_whitespace_pattern"  # says how JSON is written, not what
_OLDER_GUIDES = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    _SPACES: "whitespace_pattern",
}
_CONSTRAINTS = ("json", "json_object", "regex", "choice", "grammar", "structural_tag")


@cache
def _keys(model: type[BaseModel], plain: type[BaseModel]) -> frozenset[str]:
    """The keys of options: what a model has in addition to its plain form, and what has an effect."""
    ignored = rules_of(model, Effectless).keys() | rules_of(model, UnsupportedKey).keys()
    return frozenset(model.model_fields.keys() - plain.model_fields.keys() - ignored)


@cache
def _only_endpoints(model: type[BaseModel]) -> dict[str, OnlyEndpoints]:
    return rules_of(model, OnlyEndpoints)


_OFF = frozenset({"logprobs", "echo", "include_stop_str_in_output", "return_token_ids", "return_tokens_as_token_ids"})


def sent_options(body: BaseModel, plain: type[BaseModel]) -> dict[str, Any]:
    """The options as the request has them, without those that ask for nothing. `plain`: the model of bodies without
    options.
    """
    given = _keys(type(body), plain) & body.model_fields_set
    found = body.model_dump(include=set(given), by_alias=True, exclude_unset=True) if given else {}
    harmless = _only_endpoints(type(body)) if found else {}
    return {
        key: value
        for key, value in found.items()
        if value is not None
        and not (value is False and key in _OFF)
        and not (value in ({}, []) and key != "guided_json")
        and not (key in harmless and value in harmless[key].harmless)
    }


def options_of(body: BaseModel, sent: dict[str, Any], guide: Mapping[str, Any], logprobs: int | None = None) -> Options:
    """`sent`: from `sent_options`; the format may have added to it. `guide`: from `guide_of`."""
    only = [key for key in _only_endpoints(type(body)) if key in sent]
    values = sent | {"sent": sent, "only_endpoints": only, "logprobs": logprobs, "guide": None}
    made = msgspec.convert(values, Options, str_keys=True)
    rest = {name: value for name, value in guide.items() if name not in ("json", "json_object")}
    return made if not rest else msgspec.structs.replace(made, guide=msgspec.convert(rest, Guide))


def guide_of(sent: Mapping[str, Any]) -> dict[str, Any]:
    """What the options say about the answer, by the names that `structured_outputs` has."""
    asked = {name: value for name, value in sent.get("structured_outputs", {}).items() if value not in (None, False)}
    return asked | {name: sent[older] for older, name in _OLDER_GUIDES.items() if older in sent}


def json_schema_of(guide: Mapping[str, Any]) -> dict[str, Any] | None:
    """{} for any JSON object."""
    schema: dict[str, Any] | None = guide.get("json")
    return {} if schema is None and guide.get("json_object") else schema


def chat_logprobs(sent: Mapping[str, Any]) -> int | None:
    return sent.get("top_logprobs", 0) if sent.get("logprobs") else None


def option_problems(sent: Mapping[str, Any], root: str, formats: Sequence[str] = ()) -> list[Diagnostic]:
    """Problems between several options. `formats`: keys with which the format says what the answer must match."""
    found = []
    for key in ("top_logprobs", "logprob_token_ids"):
        if sent.get(key) and sent.get("logprobs") in (None, False):
            found.append(Diagnostic((root, key), "needs logprobs; add it", 'Add "logprobs": true.'))
    if sent.get("continue_final_message") and sent.get("add_generation_prompt"):
        message = "cannot be true together with continue_final_message; remove one of them"
        found.append(Diagnostic((root, "add_generation_prompt"), message, "Remove it."))
    return found + _guide_problems(sent, root, formats)


def _guide_problems(sent: Mapping[str, Any], root: str, formats: Sequence[str]) -> list[Diagnostic]:
    """An answer can match one thing only."""
    asked = guide_of({"structured_outputs": sent.get("structured_outputs", {})})
    named = [name for name in _CONSTRAINTS if name in asked]
    older = [key for key in _OLDER_GUIDES if key in sent and key != _SPACES]
    keys = [*formats, *(["structured_outputs"] if named else []), *older]
    if len(named) > 1:
        return [Diagnostic((root, "structured_outputs"), f"has {' and '.join(named)}; keep one of them")]
    if len(keys) > 1:
        return [Diagnostic((root, keys[1]), f"conflicts with {keys[0]}; keep one of them")]
    about = [key for key in ("structured_outputs", _SPACES) if key in sent]
    if about and not keys:
        return [Diagnostic((root, about[0]), f"needs one of {', '.join(_CONSTRAINTS)} in structured_outputs")]
    return []
