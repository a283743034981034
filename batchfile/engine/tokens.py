"""Counts a request's tokens as the model would see them, without loading the model. Knows no file."""

from collections.abc import Callable
from dataclasses import dataclass

from batchfile.engine.chat_prompt import ChatPrompts
from batchfile.errors import SettingsError
from batchfile.words import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCounter:
    """`count` gives the tokens of a request's prompt. `max_model_len`: the model's own bound, if it names one."""

    count: Callable[[Request], int]
    max_model_len: int | None


def token_counter(model: str) -> TokenCounter:
    """Of a folder or a hub id. Raises: SettingsError where there is no such model or it has no chat template."""
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        config = transformers.AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise SettingsError(f"the tokenizer of {model} can not be loaded: {first}") from error
    prompts = ChatPrompts(tokenizer, model)
    bound = getattr(config, "max_position_embeddings", None)
    return TokenCounter(
        count=lambda request: len(prompts.prompt(request.messages, request.tools).token_ids),
        max_model_len=bound if isinstance(bound, int) else None,
    )
