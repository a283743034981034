"""Finds the control tokens of a tokenizer in texts, whole or in part. Pure."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

# Where a template goes over to a text: at the end of a literal, or at a place in one.
_PLACES = re.compile(r"""['"]|\{[{%#]|%[a-z]|\{\w*\}""")
# Words that a template compares or looks up, such as 'image' and .function: those of a request must stay as they are.
_OWN_WORDS = re.compile(r"""(?<=\.)\w+|(?<=')\w+(?=')|(?<=")\w+(?=")""")
_ASCII = "".join(map(chr, range(32, 127)))


class AnyOf:
    """Finds these tokens: the longest at each place, as tokenizers do.

    Shared beginnings are tried once: a tokenizer may have a thousand tokens such as `<SPECIAL_20>`.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        tree: dict[str, Any] = {}
        tokens = list(tokens)
        self._beginnings = {token[:size] for token in tokens for size in range(1, len(token))}
        self._longest = max(map(len, self._beginnings), default=1)
        for token in tokens:
            node = tree
            for letter in token:
                node = node.setdefault(letter, {})
            node[""] = {}
        self._pattern = re.compile(_branches(tree) or r"(?!)")
        self._letters = list(tree)

    def first_in(self, text: str) -> str | None:
        for letter in self._letters:  # most texts have none, and to know that is cheaper than to match
            if letter in text:
                found = self._pattern.search(text)
                return None if found is None else found[0]
        return None

    def all_in(self, text: str) -> list[str]:
        return self._pattern.findall(text)

    def begins(self, text: str) -> bool:
        return self._pattern.match(text) is not None

    def ends_inside(self, text: str) -> bool:
        """Whether a token may begin at the end of the text, apart from spaces, which templates strip."""
        tail = text.rstrip()[-self._longest :]
        for letter in self._letters:
            at = tail.find(letter)
            while at >= 0:
                if tail[at:] in self._beginnings:
                    return True
                at = tail.find(letter, at + 1)
        return False

    def sub(self, name: Callable[[re.Match[str]], str], text: str) -> str:
        return self._pattern.sub(name, text)


def _branches(node: dict[str, Any]) -> str:
    found = "|".join(re.escape(letter) + _branches(inner) for letter, inner in node.items() if letter)
    is_end = "" in node
    return f"(?:{found}){'?' if is_end else ''}" if found and (is_end or len(node) > 1) else found


class Rests:
    """What is left of tokens whose beginning the template writes just before a text, as in `'<' ~ name ~ '>'`."""

    def __init__(self, tokens: Sequence[str], template: str) -> None:
        longest = max(map(len, tokens), default=0)
        tails = {template[: place.start()].rstrip()[-longest:] for place in _PLACES.finditer(template)}
        rests = {
            token[size:]
            for token in tokens
            for size in range(1, len(token))
            if any(tail.endswith(token[:size]) for tail in tails)
        }
        self.is_empty = not rests
        self._pattern = AnyOf(rests)
        self._beginnings = {rest[:size] for rest in rests for size in range(1, len(rest) + 1)}
        self._own_words = set(_OWN_WORDS.findall(template))

    def may_end(self, text: str) -> bool:
        """Whether a text may end such a token, or continue it until the template ends it."""
        if self.is_empty:
            return False
        text = text.strip()
        return (text in self._beginnings or self._pattern.begins(text)) and text not in self._own_words


class Normalized:
    """Texts as the tokenizer's normalizer leaves them, where it looks for some tokens."""

    def __init__(self, normalizer: Any, tokens: Iterable[str]) -> None:
        self._of = normalizer.normalize_str
        self.pattern = AnyOf(filter(None, (self._of(token).strip(" ▁") for token in tokens)))
        self._keeps_ascii = self._of(_ASCII) == _ASCII

    @classmethod
    def of(cls, tokenizer: Any, backend: Any, tokens: set[str]) -> "Normalized | None":
        normalizer = None if backend is None else backend.normalizer
        if normalizer is None or json.loads(normalizer.__getstate__()).get("normalizers") == []:
            return None
        found = {one.content for one in tokenizer.added_tokens_decoder.values() if one.normalized} & tokens
        return cls(normalizer, sorted(found)) if found else None

    def changed(self, text: str) -> str | None:
        """The normalized text; None if it is the same."""
        if self._keeps_ascii and text.isascii():
            return None
        made = str(self._of(text))
        return None if made == text else made
