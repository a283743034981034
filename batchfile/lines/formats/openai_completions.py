"""OpenAI's `body` of a completion: a raw prompt, without a chat template, that the model continues."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from batchfile.endpoints import URLS
from batchfile.lines.diagnostics import Diagnostic
from batchfile.lines.formats.openai_shared import Ignored, PlainSampled, asked_of, format_keys, inputs_of
from batchfile.lines.formats.options import GeneratingOptions, NumLogprobs, option_problems, sent_options
from batchfile.lines.formats.shared import TOKENS_MAX, Format, OnlyEndpoints, UnsupportedKey, Whole
from batchfile.types import Defaults, Input, Raw, Request

URL = URLS["completion"]
MAX_TOKENS = 16  # OpenAI's default


def _prompt(given: Any) -> Input:
    inputs = inputs_of(given)
    if len(inputs) > 1:
        raise ValueError(f"has {len(inputs)} prompts; put each prompt on its own line")
    return inputs[0]


class PlainBody(PlainSampled):
    """The fields that most bodies have alone."""

    prompt: Annotated[Any, AfterValidator(_prompt)]


class Body(PlainBody, GeneratingOptions, Ignored):
    """The fields of `body`."""

    max_tokens: Annotated[Whole, Field(ge=0, le=TOKENS_MAX)] | None = None  # 0: only with echo
    logprobs: NumLogprobs | None = None
    echo: bool | None = None
    thinking_token_budget: Annotated[Whole, Field(ge=-1, le=TOKENS_MAX)] | None = None

    suffix: Annotated[Any, OnlyEndpoints("it only generates after the prompt", ("",))] = None

    # Rejected, except with a value that has no effect.
    best_of: Annotated[Any, UnsupportedKey((None, 1), "best_of is not supported; use n")] = None
    prompt_embeds: Annotated[
        Any, UnsupportedKey((None,), "prompts as embeddings are not supported; use prompt with text or token ids")
    ] = None


def _more_problems(body: PlainBody) -> list[Diagnostic]:
    if type(body) is PlainBody:
        return []
    sent = sent_options(body, PlainBody)
    found = option_problems(sent, "body", format_keys(body))
    if body.max_tokens == 0 and not sent.get("echo"):
        found.append(Diagnostic(("body", "max_tokens"), "must be at least 1, got 0", 'Or add "echo": true.'))
    if body.max_tokens == 0 and sent.get("logprob_token_ids"):
        found.append(Diagnostic(("body", "logprob_token_ids"), "needs an answer, and max_tokens is 0; remove it"))
    return found


def _to_request(custom_id: str, body: PlainBody, defaults: Defaults) -> Request:
    asked = asked_of(body, PlainBody, defaults, body.max_tokens, MAX_TOKENS)
    return Request(
        custom_id=custom_id,
        messages=(),
        raw=Raw(kind="completion", inputs=(body.prompt,)),
        model=body.model or defaults.model,
        sampling=asked.sampling,
        options=asked.options,
    )


FORMAT = Format(url=URL, plain=PlainBody, body=Body, to_request=_to_request, more_problems=_more_problems)
