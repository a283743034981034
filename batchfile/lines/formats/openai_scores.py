"""vLLM's bodies with texts to compare: scores of pairs, and documents ordered by how near they are to a query."""

from typing import Annotated, Any

from msgspec.structs import replace
from pydantic import Field

from batchfile.endpoints import URLS
from batchfile.lines.diagnostics import Diagnostic
from batchfile.lines.formats.openai_embeddings import INPUTS_MAX
from batchfile.lines.formats.options import PromptOptions, TemplateArguments, options_of, sent_options
from batchfile.lines.formats.shared import TOKENS_MAX, Effectless, Format, Name, OnlyEndpoints, Strict, Whole
from batchfile.types import Defaults, Raw, Request, Sampling

Texts = Name | Annotated[list[Name], Field(min_length=1, max_length=INPUTS_MAX)]
_PAIRS = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))
_SHORTEN = OnlyEndpoints("use truncate_prompt_tokens", (0,))


class ScoringOptions(PromptOptions):
    use_activation: bool | None = None
    padding: Annotated[Any, OnlyEndpoints("it does not pad inputs", ("do_not_pad",))] = None
    max_tokens_per_query: Annotated[Any, _SHORTEN] = None
    max_tokens_per_doc: Annotated[Any, _SHORTEN] = None
    instruction: str | None = None
    chat_template_kwargs: TemplateArguments | None = None

    user: Annotated[Any, Effectless("a label for the vendor")] = None


class PlainBody(Strict):
    """The fields that most bodies have alone. The texts of a pair have one of several names."""

    model: Name | None = None
    text_1: Texts | None = None
    text_2: Texts | None = None
    queries: Texts | None = None
    documents: Texts | None = None
    items: Texts | None = None
    data_1: Texts | None = None
    data_2: Texts | None = None

    @property
    def pair(self) -> tuple[list[str], list[str]] | None:
        given = {name for pair in _PAIRS for name in pair if getattr(self, name) is not None}
        for first, second in _PAIRS:
            if given == {first, second}:
                return _listed(getattr(self, first)), _listed(getattr(self, second))
        return None


class Body(PlainBody, ScoringOptions):
    """The fields of `body`."""


class PlainRerankBody(Strict):
    """The fields that most bodies have alone."""

    query: Name
    documents: Texts
    model: Name | None = None
    top_n: Annotated[Whole, Field(ge=0, le=TOKENS_MAX)] | None = None  # 0: all


class RerankBody(PlainRerankBody, ScoringOptions):
    """The fields of `body` of a rerank request."""


def _listed(given: str | list[str]) -> list[str]:
    return [given] if isinstance(given, str) else given


def _more_problems(body: PlainBody) -> list[Diagnostic]:
    if body.pair is None:
        return [Diagnostic(("body",), "needs text_1 and text_2 (or queries and documents), and no other texts")]
    first, second = map(len, body.pair)
    if first in (1, second):
        return []
    return [Diagnostic(("body",), f"has {first} and {second} texts; give as many of both, or one of the first")]


def _score(custom_id: str, body: PlainBody, defaults: Defaults) -> Request:
    first, second = body.pair or ([], [])
    raw = Raw(kind="score", inputs=(*first, *second), num_queries=len(first))
    return _request(custom_id, body, PlainBody, raw, defaults)


def _rerank(custom_id: str, body: PlainRerankBody, defaults: Defaults) -> Request:
    documents = _listed(body.documents)
    inputs, top_n = (body.query, *documents), body.top_n or len(documents)
    raw = Raw(kind="rerank", inputs=inputs, num_queries=1, top_n=top_n)
    return _request(custom_id, body, PlainRerankBody, raw, defaults)


def _request(
    custom_id: str, body: PlainBody | PlainRerankBody, plain: type[Strict], raw: Raw, defaults: Defaults
) -> Request:
    sent = sent_options(body, plain)
    options = options_of(body, sent, {}) if sent else None
    if options is not None and "instruction" in sent:  # a variable of the template around a pair
        arguments = {"instruction": sent["instruction"]} | (options.chat_template_kwargs or {})
        options = replace(options, chat_template_kwargs=arguments)
    return Request(
        custom_id=custom_id,
        messages=(),
        raw=raw,
        model=body.model or defaults.model,
        sampling=Sampling(max_tokens=0),
        options=options,
    )


SCORE = Format(url=URLS["score"], plain=PlainBody, body=Body, to_request=_score, more_problems=_more_problems)
RERANK = Format(url=URLS["rerank"], plain=PlainRerankBody, body=RerankBody, to_request=_rerank)
