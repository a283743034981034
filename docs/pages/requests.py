"""The tables of docs/requests.md, made from the models that read requests: what becomes of every key.

The text around them stays.
"""

import re
from typing import Literal, NamedTuple

from pydantic import BaseModel

from batchfile.lines.formats import native, openai_chat, openai_scores
from batchfile.lines.formats.bodies import FORMATS
from batchfile.lines.formats.shared import Effectless, OnlyEndpoints, UnsupportedKey, rules_of

State = Literal["served", "http only", "no effect", "rejected"]

MODELS: dict[str, type[BaseModel]] = {"params": native.Params} | {
    url: form.body for url, form in FORMATS.items() if form.body is not native.Params
}
# From `<!-- requests: NAME -->` to `<!-- end -->` the page has the table of this model.
_BLOCK = re.compile(r"(<!-- requests: (\S+) -->\n).*?(<!-- end -->)", re.S)
_HEADINGS = "| key | what becomes of it | engines |\n|---|---|---|\n"

# The served keys that the echo engine follows; it has no model for the others.
ECHO = frozenset(
    {
        *("dimensions", "encoding_format", "echo", "guided_choice", "input", "logprobs", "max_completion_tokens"),
        *("max_tokens", "messages", "model", "n", "prompt", "stop", "stop_sequences", "structured_outputs", "system"),
        *("thinking", "tool_choice", "tools", "top_logprobs", "text_1", "text_2", "queries", "documents", "items"),
        *("data_1", "data_2", "query", "top_n", "instructions", "max_output_tokens"),
    }
)
_VARIABLE = "a variable of the chat template; rejected if the template does not use it"
NOTES = {
    "cache_salt": "vLLM's prefix cache is separate for each value",
    "chat_template_kwargs": "variables of the chat template; a template ignores those that it does not use",
    "echo": (
        "the answer begins with the prompt, of a conversation with its last turn; with `logprobs`, a completion is "
        "rejected by a model with LoRA adapters"
    ),
    "guided_choice": "the older form of `structured_outputs`",
    "guided_grammar": "the older form of `structured_outputs`",
    "guided_json": "the older form of `structured_outputs`",
    "guided_regex": "the older form of `structured_outputs`",
    "guided_whitespace_pattern": "the older form of `structured_outputs`; vLLM ignores it, so its pools reject it",
    "include": "`message.output_text.logprobs` asks for log probabilities; other values have no effect",
    "instruction": "a variable of the template around a pair; on vLLM, the pool sets `chat_template`",
    "include_reasoning": "false: the result is without the thinking",
    "model": (
        "names a pool, its model or an adapter; without an effect in batches of a stage, unless it is an adapter of "
        "its pool, and in `batchfile run` without `--lora`"
    ),
    "logprobs": "vLLM reports at most 20 tokens in each place, unless the pool sets `max_logprobs`",
    "output_config": "`format` guides the answer; `effort` is `reasoning_effort` of OpenAI's format",
    "priority": "vLLM rejects values other than 0 unless the pool sets `scheduling_policy` to `priority`",
    "prompt_logprobs": "the prompt is computed without the prefix cache; rejected by a model with LoRA adapters",
    "reasoning_effort": "a variable of the chat template, as `enable_thinking` is; rejected if it uses neither",
    "thinking": (
        "`budget_tokens` is `thinking_token_budget` of vLLM; `disabled` is rejected where a model thinks and its chat "
        "template cannot turn that off; on HTTP pools, only the budget is sent"
    ),
    "thinking_token_budget": "vLLM needs a reasoning parser with known markers",
    "tools": (
        "needs a chat template with tools; on vLLM, `strict` guides the arguments by the schema, for parsers for whose "
        "calls vLLM has a grammar; its default is true where `tool_choice` requires a call, else false"
    ),
    "vllm_xargs": "for samplers of your own in vLLM",
    "verbosity": _VARIABLE,
}


class KeyRow(NamedTuple):
    """`note`: why, or under which condition."""

    key: str
    state: State
    engines: str
    note: str


def rows_of(model: type[BaseModel]) -> list[KeyRow]:
    """One row for each key that a model reads, in the order of the model."""
    ignored, rejected = rules_of(model, Effectless), rules_of(model, UnsupportedKey)
    only = rules_of(model, OnlyEndpoints)
    rows = []
    for key in model.model_fields:
        if key in ignored:
            rows.append(KeyRow(key, "no effect", "", ignored[key].reason))
        elif key in rejected:
            rows.append(KeyRow(key, "rejected", "", rejected[key].message))
        elif key in only:
            rows.append(KeyRow(key, "http only", "http", f"any other engine rejects it: {only[key].reason}"))
        else:
            is_variable = key == "documents" and model in (native.Params, openai_chat.Body)
            is_followed = key in ECHO and not is_variable
            is_of_pair = key == "chat_template_kwargs" and issubclass(model, openai_scores.ScoringOptions)
            note = _VARIABLE if is_variable else NOTES.get("instruction" if is_of_pair else key, "")
            rows.append(KeyRow(key, "served", "vllm, http" + (", echo" if is_followed else ""), note))
    order: tuple[State, ...] = ("served", "http only", "no effect", "rejected")
    return sorted(rows, key=lambda row: order.index(row.state))


def with_tables(page: str) -> str:
    """The page with its tables updated."""
    return _BLOCK.sub(lambda block: f"{block[1]}\n{_table(MODELS[block[2]])}\n{block[3]}", page)


def _table(model: type[BaseModel]) -> str:
    lines = [f"| `{row.key}` | {_description(row)} | {row.engines} |\n" for row in rows_of(model)]
    return _HEADINGS + "".join(lines)


def _description(row: KeyRow) -> str:
    return f"{row.state}: {row.note}" if row.note else row.state
