"""The options that few requests set, as the formats make them and as engines take them."""

from typing import Any, Literal

from msgspec import Struct


class Guide(Struct, frozen=True, kw_only=True):
    """What an answer must match, other than a JSON schema: at most one of `regex`, `choice`, `grammar` and
    `structural_tag`. The rest, by vLLM's names, is about how JSON may be written, and applies to a JSON schema too.
    """

    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None
    structural_tag: str | None = None  # JSON
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None
    whitespace_pattern: str | None = None

    @property
    def is_constraint(self) -> bool:
        return any(one is not None for one in (self.regex, self.choice, self.grammar, self.structural_tag))


class Options(Struct, frozen=True, kw_only=True):
    """What few requests set, in addition to Sampling, by vLLM's names. None: not set.

    `sent`: every option as the request has it, for endpoints. `only_endpoints`: the keys of those that no other engine
    supports. `logprobs`: how many of the likeliest tokens to report in place of each token, with their logarithmic
    probabilities; 0: of the chosen token alone.
    """

    sent: dict[str, Any]
    only_endpoints: tuple[str, ...] = ()
    guide: Guide | None = None

    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logprob_token_ids: tuple[int, ...] | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: tuple[int, ...] | None = None
    stop_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[str, ...] | None = None
    min_tokens: int | None = None
    thinking_token_budget: int | None = None
    repetition_detection: dict[str, int] | None = None
    watermarking: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    vllm_xargs: dict[str, Any] | None = None

    # The prompt.
    truncate_prompt_tokens: int | None = None  # -1: as many as fit
    truncation_side: Literal["left", "right"] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None

    # The answer.
    echo: bool | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None

    # The engine's work.
    priority: int | None = None
    cache_salt: str | None = None
    use_activation: bool | None = None
    task: str | None = None  # of the model's pooler, by vLLM's name
