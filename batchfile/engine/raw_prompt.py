"""Texts into token ids as they are, without a chat template. Any thread may do it.

Works on a Hugging Face tokenizer that is handed in; imports none, and knows no engine.
"""

import threading
import zlib
from typing import Any

from batchfile.engine.chat_template import PREFIX_TOKENS
from batchfile.types import Input


class RawPrompts:
    """Takes a tokenizer of its own, which nobody else changes."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()

    def token_ids(self, given: Input) -> list[int]:
        """With what the tokenizer puts around any text (a first token, say); ids that were given stay as they are."""
        if not isinstance(given, str):
            return list(given)
        if self._backend is not None:
            ids: list[int] = self._backend.encode(given, add_special_tokens=True).ids
            return ids
        with self._lock:
            return list(self._tokenizer.encode(given))


def prefix_of_ids(token_ids: list[int]) -> int:
    """Equal for prompts that begin with the same tokens."""
    return zlib.crc32(repr(token_ids[:PREFIX_TOKENS]).encode())
