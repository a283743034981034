"""Advice on unknown keys: keys of other APIs are looked up first, then typing errors.

A suggestion means the same as the key, differs from it, and is never itself a rejected key.
"""

from collections.abc import Collection
from typing import NamedTuple

_SUBSTITUTION_LETTERS_MIN = 6  # top_a is not top_k
_FIRST_LETTER_FREE_MIN = 6  # top is not stop


class Advice(NamedTuple):
    message: str
    fix: str = ""


UNKNOWN = Advice("unknown field; remove it")
# Names of our keys in other APIs: the first one that is allowed in the request has the same meaning.
SAME: dict[str, tuple[str, ...]] = {
    "max_completion_tokens": ("max_tokens", "max_output_tokens"),
    "max_tokens": ("max_output_tokens",),
    "max_new_tokens": ("max_tokens",),
    "max_output_tokens": ("max_tokens",),
    "max_tokens_to_sample": ("max_tokens",),
    "maxOutputTokens": ("max_tokens",),
    "n_predict": ("max_tokens",),
    "num_predict": ("max_tokens",),
    "random_seed": ("seed",),
    "repeat_penalty": ("repetition_penalty",),
    "stop": ("stop_sequences",),
    "stop_sequences": ("stop",),
}

_USER_TURN = 'Write {"role": "user", "content": "..."} in messages.'
_SYSTEM_TURN = 'Write {"role": "system", "content": "..."} as the first of messages.'
_FORM = "use response_format of type json_schema"

# Keys of other APIs or of our other formats whose values have to be written differently.
OTHERWISE: dict[str, tuple[tuple[str, Advice], ...]] = {
    # the key that the format must have, and the advice
    "input": (("messages", Advice("is not supported here; put the text into messages", _USER_TURN)),),
    "prompt": (("messages", Advice("is not supported here; put the text into messages", _USER_TURN)),),
    "messages": (
        ("prompt", Advice("belongs to /v1/chat/completions; use that url, or put the text into prompt")),
        ("input", Advice("belongs to /v1/chat/completions; use that url, or put the text into input")),
    ),
    "instructions": (
        ("system", Advice("is not supported here; put it into system")),
        ("response_format", Advice("is not supported here; put it into a system turn", _SYSTEM_TURN)),
    ),
    "system": (("tool_choice", Advice("is not supported here; put it into a system turn", _SYSTEM_TURN)),),
    "system_prompt": (
        ("system", Advice("is not supported here; put it into system")),
        ("tool_choice", Advice("is not supported here; put it into a system turn", _SYSTEM_TURN)),
    ),
    "response_format": (
        (
            "output_config",
            Advice(
                "is not supported here; use output_config",
                'Write {"format": {"type": "json_schema", "schema": {...}}} as output_config.',
            ),
        ),
        ("max_output_tokens", Advice("is not supported here; use text.format")),
    ),
    "output_config": (("response_format", Advice(f"is not supported here; {_FORM}")),),
    "output_format": (("response_format", Advice(f"is not supported here; {_FORM}")),),
    "json_schema": (("response_format", Advice(f"is not supported here; {_FORM}")),),
    "reasoning": (
        ("reasoning_effort", Advice("is not supported here; use reasoning_effort")),
        ("output_config", Advice("is not supported here; use output_config.effort")),
    ),
    "reasoning_effort": (
        ("output_config", Advice("is not supported here; use output_config.effort")),
        ("max_output_tokens", Advice("is not supported here; use reasoning.effort")),
    ),
    "verbosity": (("max_output_tokens", Advice("is not supported here; use text.verbosity")),),
    "effort": (
        ("output_config", Advice("is not supported here; use output_config.effort")),
        ("reasoning_effort", Advice("is not supported here; use reasoning_effort")),
    ),
    "thinking": (("reasoning_effort", Advice("is not supported here; use reasoning_effort, or chat_template_kwargs")),),
    "thinking_budget": (
        ("thinking", Advice("is not supported here; use thinking.budget_tokens")),
        ("thinking_token_budget", Advice("is not supported here; use thinking_token_budget")),
    ),
    "thinking_token_budget": (("thinking", Advice("is not supported here; use thinking.budget_tokens")),),
    "include_reasoning": (("thinking", Advice("is not supported here; use thinking")),),
}

# Keys of other APIs that change an answer and have no equivalent here.
NOT_SERVED = frozenset(
    {
        *("add_generation_prompt", "add_special_tokens", "allowed_token_ids", "bad_words", "best_of", "cache_salt"),
        *(
            "chat_template",
            "chat_template_kwargs",
            "continue_final_message",
            "do_sample",
            "documents",
            "early_stopping",
        ),
        *("echo", "function_call", "functions", "grammar", "guided_choice", "guided_decoding_backend"),
        *("guided_grammar", "guided_json", "guided_regex", "include_reasoning", "include_stop_str_in_output"),
        *("kv_transfer_params", "length_penalty", "logit_bias", "logits_processors", "logprobs", "max_length"),
        *("max_time", "min_length", "min_new_tokens", "min_tokens", "mirostat", "mirostat_eta", "mirostat_tau"),
        *("mm_processor_kwargs", "modalities", "models", "num_beams", "parallel_tool_calls", "plugins", "priority"),
        *("prompt_logprobs", "provider", "reasoning", "reasoning_effort", "return_token_ids"),
        *("return_tokens_as_token_ids", "route", "skip_special_tokens", "spaces_between_special_tokens"),
        *("stop_token_ids", "structured_outputs", "suffix", "tfs_z", "thinking", "thinking_budget"),
        *("thinking_token_budget", "top_a", "top_logprobs", "transforms", "truncate_prompt_tokens", "truncation"),
        *("typical_p", "use_beam_search", "verbosity", "vllm_xargs", "web_search_options"),
    }
)


def advice(key: str, keys: Collection[str], given: Collection[str] = (), elsewhere: Collection[str] = ()) -> Advice:
    """Advice on a key that is not allowed. `keys`: the allowed ones, without those that are always rejected. `given`:
    those in the request, which are never suggested. `elsewhere`: keys of all formats, which are not typing errors.
    """
    for ours in SAME.get(key, ()):
        if ours in keys:
            return _rename(ours, given)
    for known, hint in OTHERWISE.get(key, ()):
        if known in keys:
            return hint
    if key in NOT_SERVED:
        return Advice(f"{key} is not supported; remove it")
    if key in elsewhere:
        return Advice("is not a field of this format; remove it")
    typo = typo_of(key, keys)
    return UNKNOWN if typo is None else _rename(typo, given)


def typo_of(key: str, keys: Collection[str]) -> str | None:
    """The only one of `keys` that can be meant: the same letters in another spelling, or one letter different."""
    letters = _letters(key)
    near = {ours for ours in keys if ours != key and _is_near(letters, _letters(ours))}
    same = {ours for ours in near if _letters(ours) == letters}
    if not same and any(_differs_in_one(letters, _letters(ours)) for ours in set(keys) - near):
        return None  # tok_p may be top_k or top_p
    near = same or near
    return near.pop() if len(near) == 1 else None


def _rename(ours: str, given: Collection[str]) -> Advice:
    if ours in given:
        return Advice(f"unknown field; {ours} is given already, so remove this one", "Remove it.")
    return Advice(f"unknown field; did you mean {ours}?", f"Rename it to {ours}.")


def _letters(key: str) -> str:
    return key.lower().replace("_", "").replace("-", "")


def _differs_in_one(one: str, other: str) -> bool:
    return len(one) == len(other) and sum(a != b for a, b in zip(one, other, strict=True)) == 1


def _is_near(one: str, other: str) -> bool:
    if one == other:
        return True
    if min(len(one), len(other)) < 3 or (len(one) < _FIRST_LETTER_FREE_MIN and one[0] != other[0]):
        return False
    start = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    rest, others = one[start:], other[start:]
    if len(one) != len(other):
        return rest[1:] == others or rest == others[1:]
    if rest[:2] == others[1::-1] and rest[2:] == others[2:]:
        return True  # two swapped letters
    return len(one) >= _SUBSTITUTION_LETTERS_MIN and rest[1:] == others[1:]
