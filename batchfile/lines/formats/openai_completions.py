"""OpenAI's `body` of a completion: a raw prompt, without a chat template, that the model continues."""

from typing import Annotated, Any

from pydantic import AfterValidator

from batchfile.lines.diagnostics import Diagnostic
from batchfile.lines.formats.openai_shared import Sampled, inputs_of, sampling_of
from batchfile.lines.formats.shared import UnsupportedKey, unsupported_keys_of
from batchfile.types import Defaults, Input, Raw, Request

URL = "/v1/completions"
MAX_TOKENS = 16  # OpenAI's default


def _prompt(given: Any) -> Input:
    inputs = inputs_of(given)
    if len(inputs) > 1:
        raise ValueError(f"has {len(inputs)} prompts; put each prompt on its own line")
    return inputs[0]


class Body(Sampled):
    """The fields of `body`."""

    prompt: Annotated[Any, AfterValidator(_prompt)]

    # Rejected, except with a value that has no effect.
    best_of: Annotated[Any, UnsupportedKey((None, 1), "best_of is not supported; use n")] = None
    logprobs: Annotated[Any, UnsupportedKey((None,), "logprobs are not supported; remove it")] = None
    echo: Annotated[Any, UnsupportedKey((None, False), "echo is not supported; remove it or set it to false")] = None
    suffix: Annotated[
        Any,
        UnsupportedKey((None, ""), "suffix is not supported: text is only generated after the prompt", "Remove it."),
    ] = None


UNSUPPORTED_KEYS = unsupported_keys_of(Body)
_CHECKED = frozenset(UNSUPPORTED_KEYS)


def is_plain(body: Body) -> bool:
    return _CHECKED.isdisjoint(body.model_fields_set)


def more_problems(_: Body) -> list[Diagnostic]:
    return []


def to_request(custom_id: str, body: Body, defaults: Defaults) -> Request:
    return Request(
        custom_id=custom_id,
        messages=(),
        raw=Raw(kind="completion", inputs=(body.prompt,)),
        model=body.model or defaults.model,
        sampling=sampling_of(body, defaults, body.max_tokens, MAX_TOKENS),
    )
