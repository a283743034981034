"""Parses what an endpoint tells about tokens: log probabilities and token ids, as OpenAI and vLLM write them.

Raises the errors that answer.py takes for a response of another form: ValueError, KeyError, TypeError.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from batchfile.types import Choice, Completion, PromptLogprobs, TokenLogprob, TopLogprob


def with_details(completion: Completion, body: dict[str, Any], choices: Sequence[dict[str, Any]]) -> Completion:
    """`choices`: of the response, in the order of the completion's."""
    prompt_ids = body.get("prompt_token_ids") or choices[0].get("prompt_token_ids")
    prompt_logprobs = body.get("prompt_logprobs") or choices[0].get("prompt_logprobs")
    return replace(
        completion,
        choices=tuple(_choice(made, given) for made, given in zip(completion.choices, choices, strict=True)),
        prompt_token_ids=_ids(prompt_ids),
        prompt_logprobs=None if not prompt_logprobs else msgspec.convert(prompt_logprobs, PromptLogprobs),
    )


def _choice(made: Choice, given: dict[str, Any]) -> Choice:
    logprobs, token_ids = _logprobs(given.get("logprobs")), _ids(given.get("token_ids"))
    return made if logprobs is None and token_ids is None else replace(made, logprobs=logprobs, token_ids=token_ids)


def _ids(given: Any) -> tuple[int, ...] | None:
    return None if given is None else msgspec.convert(given, tuple[int, ...])


def _logprobs(given: Any) -> tuple[TokenLogprob, ...] | None:
    """Of a chat completion or of a completion."""
    if not given:
        return None
    if given.get("content") is not None:
        return msgspec.convert(given["content"], tuple[TokenLogprob, ...])
    tokens = given.get("tokens")
    if tokens is None:
        return None
    tops = given.get("top_logprobs") or [None] * len(tokens)
    return tuple(
        TokenLogprob(
            token=str(token),
            logprob=None if logprob is None else float(logprob),
            top_logprobs=tuple(TopLogprob(token=name, logprob=float(one)) for name, one in (top or {}).items()),
        )
        for token, logprob, top in zip(tokens, given["token_logprobs"], tops, strict=True)
    )
