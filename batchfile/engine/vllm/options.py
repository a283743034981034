"""The one place where options become vLLM's parameters, and where what vLLM tells about tokens becomes results."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from batchfile.errors import InvalidRequest
from batchfile.request_options import Options
from batchfile.types import Completion, PromptLogprobs, Request, TokenLogprob, TopLogprob

# Options that vLLM's SamplingParams have under the same names.
SAME = (
    *("logprobs", "prompt_logprobs", "logprob_token_ids", "logit_bias", "allowed_token_ids", "stop_token_ids"),
    *("bad_words", "min_tokens", "thinking_token_budget", "watermarking", "include_stop_str_in_output"),
    *("skip_special_tokens", "spaces_between_special_tokens"),
)
# Of a guide. vLLM 0.32 reads the first two from the configuration of the engine, and the last one nowhere
# (v1/structured_output).
IGNORED = ("disable_any_whitespace", "disable_additional_properties", "whitespace_pattern")
LOGPROB_MIN = -9999.0  # vLLM's API never reports less, because JSON has no infinity


def check_priority(request: Request, policy: str) -> None:
    """`policy`: vLLM's for scheduling. Raises: InvalidRequest for a priority that it ignores."""
    if request.options is not None and request.options.priority and policy != "priority":
        message = f"priority: this pool schedules by {policy}; remove it, or set scheduling_policy to priority."
        raise InvalidRequest(message)


def check_prompt_logprobs(request: Request, *, has_adapters: bool) -> None:
    """Raises: InvalidRequest for those of a prompt where adapters are loaded.

    vLLM 0.32 computes them with the adapters of the requests that get a token in the step, one for each request instead
    of one for each token of the prompt. On a CPU, that ends the engine (lora/ops/torch_ops).
    """
    options = request.options
    if options is None or not has_adapters:
        return
    if options.prompt_logprobs is not None:
        raise InvalidRequest("prompt_logprobs: vLLM does not have them for a model with LoRA adapters; remove it.")
    if request.raw is not None and options.echo and options.logprobs is not None:
        raise InvalidRequest("echo: with logprobs, vLLM does not have it for a model with LoRA adapters; remove one.")


def sampling_arguments(options: Options, *, is_raw: bool) -> dict[str, Any]:
    """Further arguments of SamplingParams. `is_raw`: of a prompt without a template. Raises: ValueError or TypeError as
    vLLM does.
    """
    from vllm.sampling_params import RepetitionDetectionParams

    given = {name: value for name in SAME if (value := getattr(options, name)) is not None}
    arguments = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    if is_raw and options.echo and options.prompt_logprobs is None and options.logprobs is not None:
        arguments["prompt_logprobs"] = options.logprobs
    if options.logprob_token_ids:
        arguments.pop("logprobs", None)  # as vLLM's API does: these tokens replace the likeliest ones
    if options.repetition_detection is not None:
        arguments["repetition_detection"] = RepetitionDetectionParams(**options.repetition_detection)
    if options.vllm_xargs:
        arguments["extra_args"] = options.vllm_xargs
    return arguments


def guide_of(request: Request) -> Any:
    """vLLM's StructuredOutputsParams; None for any text. Raises: InvalidRequest, or ValueError or
    TypeError as vLLM does.
    """
    guide = None if request.options is None else request.options.guide
    if ignored := next((name for name in IGNORED if getattr(guide, name, None)), None):
        raise InvalidRequest(f"{ignored}: vLLM ignores it in a request; remove it.")
    from vllm.sampling_params import StructuredOutputsParams

    schema = request.sampling.json_schema
    arguments: dict[str, Any] = {} if schema is None else {"json": schema} if schema else {"json_object": True}
    if guide is not None:
        given = {name: value for name, value in msgspec.structs.asdict(guide).items() if value is not None}
        arguments |= {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    return StructuredOutputsParams(**arguments) if arguments else None


def with_details(
    completion: Completion,
    output: Any,
    prompt: Sequence[int],
    options: Options,
    text_of: Callable[[int], str],
    *,
    drops_answer: bool = False,
) -> Completion:
    """Adds log probabilities and token ids, if requested. `output`: vLLM's, of this request. `text_of`: a token.

    A completion with `echo` has the log probabilities of its prompt too, or these alone if it `drops_answer`.
    """
    choices = completion.choices
    if options.logprobs is not None or options.logprob_token_ids:
        is_raw, made = completion.kind == "completion", []
        for choice, given in zip(choices, output.outputs, strict=True):
            token_ids, steps = given.token_ids, given.logprobs or ()
            if is_raw and options.echo:
                echoed = output.prompt_logprobs or ()
                token_ids, steps = (prompt, echoed) if drops_answer else ([*prompt, *token_ids], [*echoed, *steps])
            made.append(replace(choice, logprobs=_logprobs(token_ids, steps, options, text_of, is_raw=is_raw)))
        choices = tuple(made)
    if options.return_token_ids:
        choices = tuple(
            replace(choice, token_ids=tuple(given.token_ids))
            for choice, given in zip(choices, output.outputs, strict=True)
        )
    return replace(
        completion,
        choices=choices,
        prompt_logprobs=None if options.prompt_logprobs is None else _prompt_logprobs(output.prompt_logprobs or ()),
        prompt_token_ids=tuple(prompt) if options.return_token_ids else None,
    )


def _logprobs(
    token_ids: Sequence[int], steps: Sequence[Any], options: Options, text_of: Callable[[int], str], *, is_raw: bool
) -> tuple[TokenLogprob, ...]:
    """As vLLM's API makes them of the same outputs. `steps`: for each token, Logprobs by token id; None for the first
    of a prompt. A completion has one more of the likeliest tokens than a conversation, as in OpenAI's API.
    """
    made = []
    num = -1 if options.logprob_token_ids else options.logprobs or 0
    for token_id, step in zip(token_ids, steps, strict=True):
        if step is None:
            text = text_of(token_id)
            shown = f"token_id:{token_id}" if options.return_tokens_as_token_ids else text
            made.append(TokenLogprob(token=shown, logprob=None, bytes=_bytes(text)))
            continue
        likeliest = list(step.items()) if num == -1 else list(step.items())[: num + is_raw]
        own = _shown(token_id, step[token_id], options)
        tops = tuple(TopLogprob(**_shown(other, found, options)) for other, found in likeliest)
        made.append(TokenLogprob(**own, top_logprobs=tops))
    return tuple(made)


def _shown(token_id: int, found: Any, options: Options) -> dict[str, Any]:
    text = f"token_id:{token_id}" if options.return_tokens_as_token_ids else found.decoded_token or ""
    return {"token": text, "logprob": max(found.logprob, LOGPROB_MIN), "bytes": _bytes(found.decoded_token or "")}


def _bytes(text: str) -> tuple[int, ...]:
    return tuple(text.encode("utf-8", "replace"))


def _prompt_logprobs(steps: Sequence[Mapping[int, Any] | None]) -> PromptLogprobs:
    return [None if step is None else {str(key): _prompt_logprob(one) for key, one in step.items()} for step in steps]


def _prompt_logprob(found: Any) -> dict[str, Any]:
    logprob = max(found.logprob, LOGPROB_MIN)
    return {"logprob": logprob, "rank": found.rank, "decoded_token": found.decoded_token}
