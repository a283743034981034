"""vLLM's `body` of a classification: texts or lists of token ids, each of which gets the probability of each class."""

from typing import Annotated, Any

from pydantic import AfterValidator

from batchfile.lines.diagnostics import Diagnostic
from batchfile.lines.formats.openai_embeddings import UnconversedOptions, embedding_inputs
from batchfile.lines.formats.options import options_of, sent_options
from batchfile.lines.formats.shared import Name, Strict, unsupported_keys_of
from batchfile.types import Defaults, Raw, Request, Sampling

URL = "/v1/classify"


class PlainBody(Strict):
    """The fields that most bodies have alone."""

    input: Annotated[Any, AfterValidator(embedding_inputs)]
    model: Name | None = None


class Body(PlainBody, UnconversedOptions):
    """The fields of `body`."""


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
        raw=Raw(kind="classification", inputs=body.input),
        model=body.model or defaults.model,
        sampling=Sampling(max_tokens=0),
        options=options_of(body, sent, {}) if sent else None,
    )
