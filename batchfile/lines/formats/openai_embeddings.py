"""OpenAI's `body` of an embeddings request: texts or lists of token ids, each of which becomes a vector."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from batchfile.lines.diagnostics import Diagnostic
from batchfile.lines.formats.openai_shared import inputs_of
from batchfile.lines.formats.options import PromptOptions, options_of, sent_options
from batchfile.lines.formats.shared import (
    Effectless,
    Name,
    OnlyEndpoints,
    Strict,
    UnsupportedKey,
    Whole,
    unsupported_keys_of,
)
from batchfile.types import Defaults, Input, Raw, Request, Sampling

URL = "/v1/embeddings"
INPUTS_MAX = 2_048  # OpenAI's limit
DIMENSIONS_MAX = 65_536


def embedding_inputs(given: Any) -> tuple[Input, ...]:
    inputs = inputs_of(given)
    if len(inputs) > INPUTS_MAX:
        raise ValueError(f"has {len(inputs)} inputs, and the maximum is {INPUTS_MAX}; use several lines")
    return inputs


class PlainBody(Strict):
    """The fields that most bodies have alone."""

    input: Annotated[Any, AfterValidator(embedding_inputs)]
    model: Name | None = None
    dimensions: Annotated[Whole, Field(ge=1, le=DIMENSIONS_MAX)] | None = None
    encoding_format: Literal["float", "base64"] | None = None


_TALK = UnsupportedKey((None,), "conversations are not supported here; put the text into input")
_SINGLES = "vectors are float32, in little-endian order in base64; remove it"


class UnconversedOptions(PromptOptions):
    """Of every request whose inputs are texts or token ids, which become vectors or classes."""

    use_activation: bool | None = None
    padding: Annotated[Any, OnlyEndpoints("it does not pad inputs", ("do_not_pad",))] = None

    user: Annotated[Any, Effectless("a label for the vendor")] = None

    # Rejected, except with a value that has no effect.
    messages: Annotated[Any, _TALK] = None
    add_generation_prompt: Annotated[Any, _TALK] = None
    continue_final_message: Annotated[Any, _TALK] = None
    chat_template: Annotated[Any, _TALK] = None
    chat_template_kwargs: Annotated[Any, _TALK] = None
    media_io_kwargs: Annotated[Any, _TALK] = None


class BinaryOptions(Strict):
    """How vectors are written in base64. Rejected, except with a value that has no effect."""

    embed_dtype: Annotated[Any, UnsupportedKey((None, "float32"), _SINGLES)] = None
    endianness: Annotated[Any, UnsupportedKey((None, "native", "little"), _SINGLES)] = None


class Body(PlainBody, UnconversedOptions, BinaryOptions):
    """The fields of `body`."""


UNSUPPORTED_KEYS = unsupported_keys_of(Body)


def is_plain(body: PlainBody) -> bool:
    return type(body) is PlainBody


def more_problems(_: PlainBody) -> list[Diagnostic]:
    return []


def to_request(custom_id: str, body: PlainBody, defaults: Defaults) -> Request:
    is_base64 = body.encoding_format == "base64"
    sent = sent_options(body, PlainBody)
    return Request(
        custom_id=custom_id,
        messages=(),
        raw=Raw(kind="embedding", inputs=body.input, dimensions=body.dimensions, is_base64=is_base64),
        model=body.model or defaults.model,
        sampling=Sampling(max_tokens=0),
        options=options_of(body, sent, {}) if sent else None,
    )
