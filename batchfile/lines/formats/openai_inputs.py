"""What OpenAI's completions and embeddings are about: a text, token ids, or a list of these."""

from typing import Any

from batchfile.lines.diagnostics import shown
from batchfile.types import Input

TOKEN_ID_MAX = 2**31 - 1


def inputs_of(given: Any) -> tuple[Input, ...]:
    """Raises: ValueError, in words for the user."""
    if given in ("", []):
        raise ValueError("must not be empty")
    if isinstance(given, list) and isinstance(given[0], list | str):
        return tuple([_input(one, f"at [{number}] ") for number, one in enumerate(given)])
    return (_input(given, ""),)


def _input(given: Any, place: str) -> Input:
    if isinstance(given, str | list) and not given:
        raise ValueError(f"{place}must not be empty")
    if isinstance(given, str):
        return given
    if isinstance(given, list) and all(_is_token(item) for item in given):
        return tuple(given)
    raise ValueError(f"{place}must be a text or a list of token ids, got {shown(given)}")


def _is_token(item: Any) -> bool:
    return type(item) is int and 0 <= item <= TOKEN_ID_MAX
