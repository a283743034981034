"""Bodies with texts or lists of token ids: OpenAI's embeddings, and vLLM's classification and pooling.

Each input becomes a vector, gets the probability of each class, or gets what the model's pooler makes.
"""

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from batchfile.endpoints import URLS
from batchfile.lines.formats.openai_shared import inputs_of
from batchfile.lines.formats.options import PromptOptions, options_of, sent_options
from batchfile.lines.formats.shared import Effectless, Format, Name, OnlyEndpoints, Strict, UnsupportedKey, Whole
from batchfile.types import Defaults, Input, Raw, Request, Sampling

URL = URLS["embedding"]
INPUTS_MAX = 2_048  # OpenAI's limit
DIMENSIONS_MAX = 65_536


def embedding_inputs(given: Any) -> tuple[Input, ...]:
    inputs = inputs_of(given)
    if len(inputs) > INPUTS_MAX:
        raise ValueError(f"has {len(inputs)} inputs, and the maximum is {INPUTS_MAX}; use several lines")
    return inputs


class Inputs(Strict):
    input: Annotated[Any, AfterValidator(embedding_inputs)]
    model: Name | None = None


class PlainBody(Inputs):
    """The fields that most bodies have alone."""

    dimensions: Annotated[Whole, Field(ge=1, le=DIMENSIONS_MAX)] | None = None
    encoding_format: Literal["float", "base64"] | None = None


class PlainPoolingBody(Inputs):
    encoding_format: Literal["float", "base64"] | None = None


_Kind = Literal["embedding", "classification", "pooling"]
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


class ClassifyBody(Inputs, UnconversedOptions):
    """The fields of `body` of a classification."""


class PoolingBody(PlainPoolingBody, UnconversedOptions, BinaryOptions):
    """The fields of `body` of a pooling request."""

    task: Literal["embed", "classify", "token_embed", "token_classify"] | None = None

    # Rejected, except with a value that has no effect.
    dimensions: Annotated[Any, UnsupportedKey((None,), "pooling has no dimensions; use /v1/embeddings")] = None
    data: Annotated[Any, UnsupportedKey((None,), "plugins of vLLM are not supported; put texts into input")] = None


def _to_request(kind: _Kind, plain: type[Inputs], custom_id: str, body: Inputs, defaults: Defaults) -> Request:
    sent = sent_options(body, plain)
    return Request(
        custom_id=custom_id,
        messages=(),
        raw=Raw(
            kind=kind,
            inputs=body.input,
            dimensions=getattr(body, "dimensions", None),
            is_base64=getattr(body, "encoding_format", None) == "base64",
        ),
        model=body.model or defaults.model,
        sampling=Sampling(max_tokens=0),
        options=options_of(body, sent, {}) if sent else None,
    )


def _format(kind: _Kind, plain: type[Inputs], body: type[Inputs]) -> Format:
    return Format(url=URLS[kind], plain=plain, body=body, to_request=partial(_to_request, kind, plain))


EMBEDDINGS = _format("embedding", PlainBody, Body)
CLASSIFY = _format("classification", Inputs, ClassifyBody)
POOLING = _format("pooling", PlainPoolingBody, PoolingBody)
