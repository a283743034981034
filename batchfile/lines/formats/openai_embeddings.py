"""OpenAI's `body` of an embeddings request: texts or lists of token ids, each of which becomes a vector."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from batchfile.lines.diagnostics import Diagnostic
from batchfile.lines.formats.openai_shared import inputs_of
from batchfile.lines.formats.shared import Name, NoEffect, Strict, UnsupportedKey, Whole
from batchfile.types import Defaults, Input, Raw, Request, Sampling

URL = "/v1/embeddings"
INPUTS_MAX = 2_048  # OpenAI's limit
DIMENSIONS_MAX = 65_536


def _inputs(given: Any) -> tuple[Input, ...]:
    inputs = inputs_of(given)
    if len(inputs) > INPUTS_MAX:
        raise ValueError(f"has {len(inputs)} inputs, and the maximum is {INPUTS_MAX}; use several lines")
    return inputs


class Body(Strict):
    """The fields of `body`."""

    input: Annotated[Any, AfterValidator(_inputs)]
    model: Name | None = None
    dimensions: Annotated[Whole, Field(ge=1, le=DIMENSIONS_MAX)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    user: NoEffect = None


UNSUPPORTED_KEYS: dict[str, UnsupportedKey] = {}


def is_plain(_: Body) -> bool:
    return True


def more_problems(_: Body) -> list[Diagnostic]:
    return []


def to_request(custom_id: str, body: Body, defaults: Defaults) -> Request:
    is_base64 = body.encoding_format == "base64"
    return Request(
        custom_id=custom_id,
        messages=(),
        raw=Raw(kind="embedding", inputs=body.input, dimensions=body.dimensions, is_base64=is_base64),
        model=body.model or defaults.model,
        sampling=Sampling(max_tokens=0),
    )
