"""vLLM's `body` of a score request: how near the texts of each pair are."""

from typing import Annotated, Any

from msgspec.structs import replace
from pydantic import BaseModel, Field

from batchfile.lines.diagnostics import Diagnostic
from batchfile.lines.formats.openai_embeddings import INPUTS_MAX
from batchfile.lines.formats.options import PromptOptions, TemplateArguments, options_of, sent_options
from batchfile.lines.formats.shared import (
    Effectless,
    Name,
    OnlyEndpoints,
    Strict,
    UnsupportedKey,
)
from batchfile.request_options import Options
from batchfile.types import Defaults, Raw, Request, Sampling

URL = "/v1/score"

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
                return listed(getattr(self, first)), listed(getattr(self, second))
        return None


class Body(PlainBody, ScoringOptions):
    """The fields of `body`."""


UNSUPPORTED_KEYS: dict[str, UnsupportedKey] = {}


def listed(given: str | list[str]) -> list[str]:
    return [given] if isinstance(given, str) else given


def is_plain(_: PlainBody) -> bool:
    return False


def more_problems(body: PlainBody) -> list[Diagnostic]:
    if body.pair is None:
        return [Diagnostic(("body",), "needs text_1 and text_2 (or queries and documents), and no other texts")]
    first, second = map(len, body.pair)
    if first in (1, second):
        return []
    return [Diagnostic(("body",), f"has {first} and {second} texts; give as many of both, or one of the first")]


def scoring_options(body: BaseModel, sent: dict[str, Any]) -> Options | None:
    """`sent`: from `sent_options`. An instruction is a variable of the template around a pair."""
    if not sent:
        return None
    made = options_of(body, sent, {})
    if "instruction" not in sent:
        return made
    arguments = {"instruction": sent["instruction"]} | (made.chat_template_kwargs or {})
    return replace(made, chat_template_kwargs=arguments)


def to_request(custom_id: str, body: PlainBody, defaults: Defaults) -> Request:
    sent = sent_options(body, PlainBody)
    first, second = body.pair or ([], [])
    return Request(
        custom_id=custom_id,
        messages=(),
        raw=Raw(kind="score", inputs=(*first, *second), num_queries=len(first)),
        model=body.model or defaults.model,
        sampling=Sampling(max_tokens=0),
        options=scoring_options(body, sent),
    )
