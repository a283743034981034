"""Token ids into text once, at the end, instead of token by token.

vLLM makes text as tokens come (3.65 us a token); made at once it costs 0.13 us. The text must be the same, so
this exists only for tokenizers where it is. Works on a Hugging Face tokenizer that is handed in.
"""

from collections.abc import Callable
from typing import Any

# What a decoder writes for bytes that are no character: an answer cut in the middle of one, or nonsense.
BROKEN = "\N{REPLACEMENT CHARACTER}"


class OneDecode:
    """Makes the text of an answer. Use `of`."""

    def __init__(self, backend: Any, new_stream: Callable[..., Any]) -> None:
        self._backend = backend
        self._new_stream = new_stream

    @classmethod
    def of(cls, tokenizer: Any) -> "OneDecode | None":
        """None where text depends on what came before it: any but a byte-level decoder of the fast kind."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None or type(backend.decoder).__name__ != "ByteLevel":
            return None
        from tokenizers.decoders import DecodeStream

        return cls(backend, DecodeStream)

    def text(self, token_ids: list[int], prompt_ids: list[int]) -> str:
        """What vLLM's own detokenizer makes of these, special tokens left out."""
        text: str = self._backend.decode(token_ids, skip_special_tokens=True)
        return self._stepwise(token_ids, prompt_ids) if BROKEN in text else text

    def _stepwise(self, token_ids: list[int], prompt_ids: list[int]) -> str:
        """The way vLLM does it: bytes that are no character yet are held back, at the end for good."""
        stream = self._new_stream(ids=prompt_ids, skip_special_tokens=True)
        return "".join(stream.step(self._backend, token) or "" for token in token_ids)
