"""vLLM's `body` of a pooling request: texts or lists of token ids, each of which gets what the model's pooler makes."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from batchfile.lines.diagnostics import Diagnostic
from batchfile.lines.formats.openai_embeddings import BinaryOptions, UnconversedOptions, embedding_inputs
from batchfile.lines.formats.options import options_of, sent_options
from batchfile.lines.formats.shared import Name, Strict, UnsupportedKey, unsupported_keys_of
from batchfile.types import Defaults, Raw, Request, Sampling

URL = "/v1/pooling"


class PlainBody(Strict):
    """The fields that most bodies have alone."""

    input: Annotated[Any, AfterValidator(embedding_inputs)]
    model: Name | None = None
    encoding_format: Literal["float", "base64"] | None = None


class Body(PlainBody, UnconversedOptions, BinaryOptions):
    """The fields of `body`."""

    task: Literal["embed", "classify", "token_embed", "token_classify"] | None = None

    # Rejected, except with a value that has no effect.
    dimensions: Annotated[Any, UnsupportedKey((None,), "pooling has no dimensions; use /v1/embeddings")] = None
    data: Annotated[Any, UnsupportedKey((None,), "plugins of vLLM are not supported; put texts into input")] = None


UNSUPPORTED_KEYS = unsupported_keys_of(Body)


def is_plain(body: PlainBody) -> bool:
    return type(body) is PlainBody


def more_problems(_: PlainBody) -> list[Diagnostic]:
    return []


def to_request(custom_id: str, body: PlainBody, defaults: Defaults) -> Request:
    sent = sent_options(body, PlainBody)
    return Request(
        custom_id=custom_id,
        messages=(),
        raw=Raw(kind="pooling", inputs=body.input, is_base64=body.encoding_format == "base64"),
        model=body.model or defaults.model,
        sampling=Sampling(max_tokens=0),
        options=options_of(body, sent, {}) if sent else None,
    )
