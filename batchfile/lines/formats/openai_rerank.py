"""vLLM's `body` of a rerank request: documents in the order of how near they are to a query."""

from typing import Annotated

from pydantic import Field

from batchfile.lines.diagnostics import Diagnostic
from batchfile.lines.formats.openai_scores import ScoringOptions, Texts, listed, scoring_options
from batchfile.lines.formats.options import sent_options
from batchfile.lines.formats.shared import TOKENS_MAX, Name, Strict, UnsupportedKey, Whole
from batchfile.types import Defaults, Raw, Request, Sampling

URL = "/v1/rerank"


class PlainBody(Strict):
    """The fields that most bodies have alone."""

    query: Name
    documents: Texts
    model: Name | None = None
    top_n: Annotated[Whole, Field(ge=0, le=TOKENS_MAX)] | None = None  # 0: all


class Body(PlainBody, ScoringOptions):
    """The fields of `body`."""


UNSUPPORTED_KEYS: dict[str, UnsupportedKey] = {}


def is_plain(_: PlainBody) -> bool:
    return True


def more_problems(_: PlainBody) -> list[Diagnostic]:
    return []


def to_request(custom_id: str, body: PlainBody, defaults: Defaults) -> Request:
    sent, documents = sent_options(body, PlainBody), listed(body.documents)
    return Request(
        custom_id=custom_id,
        messages=(),
        raw=Raw(kind="rerank", inputs=(body.query, *documents), num_queries=1, top_n=body.top_n or len(documents)),
        model=body.model or defaults.model,
        sampling=Sampling(max_tokens=0),
        options=scoring_options(body, sent),
    )
