"""Checks whether a request fits a model: its task, its limit on tokens, and the size of its vectors.

Counts the tokens of a request as the model sees them, without loading the model.
"""

import base64
import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from math import hypot
from typing import Any, TypeVar

from msgspec.structs import replace

from batchfile.endpoints import URLS, listed, tasks_for
from batchfile.engine.prompts import MistralPrompts, RawPrompts, prompts_of, template_arguments
from batchfile.errors import InvalidRequest, SettingsError
from batchfile.types import Kind, Raw, Request, Sampling, Vector

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCounter:
    """`count` returns the number of tokens of the prompt, or of each input of an embedding.

    `max_model_len`: the limit in the model's configuration, if there is one.
    """

    count: Callable[[Request], list[int]]
    max_model_len: int | None


def token_counter(
    model: str,
    *,
    revision: str | None = None,
    chat_template: str | None = None,
    parses_control_tokens: bool = False,
) -> TokenCounter:
    """For a folder or a hub id. `chat_template`: used instead of the model's own. `parses_control_tokens`: those in
    texts count as what they mean. Raises: SettingsError if the model does not exist, or cannot use the template.

    `count` raises InvalidRequest for a conversation if the model has no chat template.
    """
    import transformers

    try:
        tokenizer = _tokenizer_of(model, revision)
        # A model with Mistral's files alone has no such configuration, and its limit is unknown.
        has_config = not MistralPrompts.fits(tokenizer)
        config = transformers.AutoConfig.from_pretrained(model, revision=revision) if has_config else None
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        named = model if revision is None else f"{model} at revision {revision!r}"
        raise SettingsError(f"the tokenizer of {named} cannot be loaded: {first}") from error
    prompts = prompts_of(tokenizer, model, chat_template=chat_template, parses_control_tokens=parses_control_tokens)
    raw = RawPrompts(tokenizer)
    bound = getattr(config, "max_position_embeddings", None)

    def count(request: Request) -> list[int]:
        if request.raw is not None:
            found = [raw.token_ids(given) for given in request.raw.inputs]
        else:
            # What media take depends on the model's processor, and is not counted.
            turns = [replace(turn, parts=()) if turn.parts else turn for turn in request.messages]
            found = [prompts.prompt(turns, request.tools, template_arguments(request)).token_ids]
        longest = bound if isinstance(bound, int) else max(map(len, found)) + 1
        return [len(truncated(request, token_ids, longest, "left")) for token_ids in found]

    return TokenCounter(count=count, max_model_len=bound if isinstance(bound, int) else None)


def _tokenizer_of(model: str, revision: str | None) -> Any:
    """That of transformers, or of mistral_common if the model has no other. Raises: OSError, ValueError."""
    import transformers

    given = {} if revision is None else {"revision": revision}
    try:
        return transformers.AutoTokenizer.from_pretrained(model, **given)
    except (OSError, ValueError):
        try:
            return transformers.MistralCommonBackend.from_pretrained(model, **given)
        except Exception:  # noqa: BLE001 - the first error says more, and not every version has this one
            pass
        raise


def check_fit(request: Request, nums: Sequence[int], max_model_len: int) -> None:
    """`nums`: from `count`. Raises: InvalidRequest if the request does not fit the model."""
    if not request.generates:
        check_inputs(nums, max_model_len)
    else:
        fitting_max_tokens(request.sampling, nums[0], max_model_len)


def check_inputs(nums: Sequence[int], max_model_len: int) -> None:
    """For an embedding. Raises: InvalidRequest."""
    for number, num in enumerate(nums):
        if num > max_model_len:
            raise InvalidRequest(
                f"Input {number} has {num} tokens, which exceeds the model's max_model_len {max_model_len}: shorten it."
            )


def fitting_max_tokens(sampling: Sampling, num_prompt: int, max_model_len: int) -> int:
    """The maximum number of tokens to generate. Raises: InvalidRequest if the request does not fit the model."""
    room = max_model_len - num_prompt
    if room < 1:
        raise InvalidRequest(
            f"A prompt of {num_prompt} tokens leaves no room to answer in the model's max_model_len "
            f"{max_model_len}: shorten the prompt."
        )
    if sampling.is_max_tokens_given and sampling.max_tokens > room:
        raise InvalidRequest(
            f"A prompt of {num_prompt} tokens plus max_tokens {sampling.max_tokens} exceeds the model's "
            f"max_model_len {max_model_len}: shorten the prompt or set max_tokens to at most {room}."
        )
    return min(sampling.max_tokens, room)


def truncated(request: Request, token_ids: list[int], max_model_len: int, side: str) -> list[int]:
    """The part of a prompt that `truncate_prompt_tokens` keeps. `side`: the tokenizer's default to cut off."""
    options = request.options
    keep = None if options is None else options.truncate_prompt_tokens
    if options is None or keep is None:
        return token_ids
    if keep == -1:  # what fits, with room for one token of an answer
        keep = max_model_len - request.generates
    if len(token_ids) <= keep:
        return token_ids
    is_left = (options.truncation_side or side) == "left"
    return token_ids[len(token_ids) - keep :] if is_left else token_ids[:keep]


def check_options(request: Request) -> None:
    """For engines other than endpoints. Raises: InvalidRequest for an option that only endpoints get."""
    for key in () if request.options is None else request.options.only_endpoints:
        raise InvalidRequest(f"{key}: only an endpoint (a pool of the engine http) can support it; remove it.")


VALUES_MAX = 1_000_000  # numbers in the vectors of one request: about 20 MB of JSON


def check_served(request: Request, kinds: Collection[Kind], model: str) -> None:
    """`kinds`: of requests that the model serves. Raises: InvalidRequest for any other."""
    if request.kind not in kinds:
        raise InvalidRequest(
            f"{URLS[request.kind]} is not served by the model {model}, which serves {listed(kinds)}: use a pool or a "
            f"run with task = {tasks_for(request.kind)}, or another model."
        )


def check_size(num_inputs: int, dimensions: int) -> None:
    """Raises: InvalidRequest if the vectors would make the result too large."""
    if num_inputs * dimensions > VALUES_MAX:
        raise InvalidRequest(
            f"{num_inputs} vectors of {dimensions} numbers exceed the limit of {VALUES_MAX:,} numbers in one result: "
            f"put at most {VALUES_MAX // dimensions} inputs on a line."
        )


def compared(raw: Raw, vectors: Sequence[Sequence[float]]) -> tuple[Vector, ...]:
    """The answer to a score or a rerank, by the cosine of the inputs' `vectors`, as vLLM's server makes it."""
    nearness = [_dot(one, other) / ((hypot(*one) * hypot(*other)) or 1.0) for one, other in pairs_of(raw, vectors)]
    return ranked(raw, nearness)


def pairs_of(raw: Raw, inputs: Sequence[_T]) -> Iterator[tuple[_T, _T]]:
    """What a score or a rerank compares. `inputs`: those of `raw`, or what was made of each."""
    first, second = [*inputs[: raw.num_queries]], inputs[raw.num_queries :]
    return zip(first * len(second) if len(first) == 1 else first, second, strict=True)


def ranked(raw: Raw, scores: Sequence[float]) -> tuple[Vector, ...]:
    """The answer to a score or a rerank. `scores`: of each pair."""
    if raw.kind == "score":
        return tuple((score,) for score in scores)
    nearest = sorted(range(len(scores)), key=lambda index: -scores[index])[: raw.top_n]
    return tuple((float(index), scores[index]) for index in nearest)


def _dot(one: Sequence[float], other: Sequence[float]) -> float:
    return sum([a * b for a, b in zip(one, other, strict=True)])


def vector_of(values: Sequence[float], *, is_base64: bool) -> tuple[float, ...] | str:
    if not is_base64:
        return tuple(values)
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
