"""Keeps control tokens in the texts of a conversation from being read as tokens: there they are data.

A chat template writes its own control tokens, such as `<|im_start|>`, next to the texts of a request, and then a
tokenizer cannot tell which is whose. So tokens in texts are replaced by placeholders before the template runs.
Afterwards the tokens of the template are renamed, the texts get theirs back, and a copy of the tokenizer that knows the
control tokens only by their new names encodes everything in one pass. So the joints are encoded as in any other text.

Only requests whose texts contain a control token take this path. Thread-safe.
"""

import json
import re
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from batchfile.errors import InvalidRequest

_SPLITS = re.compile(r"""split\(\s*(['"])(.*?)\1""")
_CANNOT_ENCODE = (
    "The text contains {token!r}, a control token of this model, and the model's tokenizer cannot encode it as "
    "ordinary text. Remove it from the text, or set parse_control_tokens, so that it keeps its meaning."
)
_CHANGES_TEXT = (
    "The text contains a control token of this model, and the model's chat template changes the text around it. "
    "Remove the token, or set parse_control_tokens, so that it keeps its meaning."
)


@dataclass(frozen=True, slots=True)
class Hidden:
    """The input of a chat template, with placeholders for the control tokens in its texts."""

    turns: list[dict[str, Any]]
    arguments: dict[str, Any]


class ControlTokens:
    """The control tokens of a tokenizer: those that are special, and all others that the chat template writes.

    In the content of assistant turns, markers on which the template splits texts (`</think>`) keep their meaning.
    """

    def __init__(self, tokenizer: Any, backend: Any) -> None:
        """`backend`: the fast tokenizer inside; None: a slow one, which cannot encode control tokens as text."""
        named = tokenizer.chat_template
        template = named if isinstance(named, str) else "\n".join(dict(named).values())
        self._tokens = _control_tokens(tokenizer, template)
        split_on = [text for _, text in _SPLITS.findall(template)]
        markers = {token for token in self._tokens if any(token in text for text in split_on)}
        markers |= {token.replace("</", "<", 1) for token in markers}
        self._pattern = _AnyOf(self._tokens)
        self._pattern_in_answers = _AnyOf(set(self._tokens) - markers)
        # Random, so that no text can contain a placeholder or a new name. Letters and digits, so that no template,
        # normalizer or JSON encoder changes them.
        self._placeholders = _Names(f"q{secrets.token_hex(8)}n", self._tokens)
        self._new_names = _Names(f"q{secrets.token_hex(8)}n", self._tokens)
        self._backend = backend
        self._lock = threading.Lock()
        self._encoder: Any = None

    def hide(self, turns: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any]) -> Hidden | None:
        """None if no text contains a control token.

        Raises: InvalidRequest if one does and the tokenizer cannot encode it as text.
        """
        found = (token for turn in turns for key in turn for token in _found(turn[key], self._pattern_for(turn, key)))
        token = next(found, None) or next(_found(arguments, self._pattern), None)
        if token is None:
            return None
        self._load_encoder(token)
        name = self._placeholders.of_match
        return Hidden(
            [{key: _changed(turn[key], self._pattern_for(turn, key), name) for key in turn} for turn in turns],
            _changed(arguments, self._pattern, name),
        )

    def restored(self, text: str) -> str:
        """A text that the template made, such as a message, without placeholders."""
        return self._placeholders.undone(text)

    def encode(self, rendered: str, *, adds_special_tokens: bool = False) -> list[int]:
        """The ids of what the template made of a Hidden. Raises: InvalidRequest."""
        text = self._placeholders.undone(self._pattern.sub(self._new_names.of_match, rendered))
        if self._placeholders.prefix in text.lower():
            raise InvalidRequest(_CHANGES_TEXT)
        ids: list[int] = self._encoder.encode(text, add_special_tokens=adds_special_tokens).ids
        return ids

    def _pattern_for(self, turn: Mapping[str, Any], key: str) -> "_AnyOf":
        return self._pattern_in_answers if key == "content" and turn["role"] == "assistant" else self._pattern

    def _load_encoder(self, token: str) -> None:
        """Made when it is first needed: that takes up to a second, and as much memory as the tokenizer."""
        with self._lock:
            if self._encoder is None and self._backend is not None:
                self._encoder = _renamed(self._backend, {one: self._new_names.of(one) for one in self._tokens})
                self._backend = None  # tried once
        if self._encoder is None:
            raise InvalidRequest(_CANNOT_ENCODE.format(token=token))


class _Names:
    """A unique name for each token, and back."""

    def __init__(self, prefix: str, tokens: Sequence[str]) -> None:
        self.prefix = prefix
        self._tokens = tokens
        self._numbers = {token: number for number, token in enumerate(tokens)}
        self._pattern = re.compile(rf"{prefix}(\d+)q")

    def of(self, token: str) -> str:
        return f"{self.prefix}{self._numbers[token]}q"

    def of_match(self, found: re.Match[str]) -> str:
        return self.of(found[0])

    def undone(self, text: str) -> str:
        return self._pattern.sub(lambda found: self._tokens[int(found[1])], text)


def _control_tokens(tokenizer: Any, template: str) -> list[str]:
    added = getattr(tokenizer, "added_tokens_decoder", None)
    if added is None:  # a tokenizer of a model's own code
        return [token for token in tokenizer.all_special_tokens if token.strip()]
    return [
        token.content
        for token in added.values()
        if token.content.strip() and (token.special or (token.content in template and not token.content.isalnum()))
    ]


class _AnyOf:
    """Finds these tokens: the longest at each place, as tokenizers do.

    Shared beginnings are tried once: a tokenizer may have a thousand tokens such as `<SPECIAL_20>`.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        tree: dict[str, Any] = {}
        for token in tokens:
            node = tree
            for letter in token:
                node = node.setdefault(letter, {})
            node[""] = {}
        self._pattern = re.compile(_branches(tree) or r"(?!)")
        self._letters = list(tree)

    def first_in(self, text: str) -> str | None:
        # Most texts have none of the first letters, and to know that is cheaper than to match.
        if not any(letter in text for letter in self._letters):
            return None
        found = self._pattern.search(text)
        return None if found is None else found[0]

    def sub(self, name: Callable[[re.Match[str]], str], text: str) -> str:
        return self._pattern.sub(name, text)


def _branches(node: dict[str, Any]) -> str:
    found = "|".join(re.escape(letter) + _branches(inner) for letter, inner in node.items() if letter)
    is_end = "" in node
    return f"(?:{found}){'?' if is_end else ''}" if found and (is_end or len(node) > 1) else found


def _found(value: Any, pattern: _AnyOf) -> Iterator[str]:
    """The first match in each of the strings inside, keys included."""
    if isinstance(value, str):
        if token := pattern.first_in(value):
            yield token
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _found(key, pattern)
            yield from _found(inner, pattern)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _found(inner, pattern)


def _changed(value: Any, pattern: _AnyOf, name: Callable[[re.Match[str]], str]) -> Any:
    if isinstance(value, str):
        return pattern.sub(name, value)
    if isinstance(value, Mapping):
        return {_changed(key, pattern, name): _changed(inner, pattern, name) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_changed(inner, pattern, name) for inner in value]
    return value


def _renamed(backend: Any, names: Mapping[str, str]) -> Any:
    """A copy of a tokenizer with other names for these tokens; None if it does not encode as the original does."""
    spec = json.loads(backend.to_str())
    for token in spec["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = spec["model"]
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): number for token, number in vocabulary.items()}
    elif isinstance(vocabulary, list):
        model["vocab"] = [[names.get(token, token), score] for token, score in vocabulary]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if model.get("merges"):  # some tokenizers would merge the characters of a control token to the token itself
        model["merges"] = [merge for merge in model["merges"] if names.keys().isdisjoint(_parts(merge))]
    try:
        made = type(backend).from_str(json.dumps(spec))
    except Exception:  # noqa: BLE001 - of Rust, without a type of its own
        return None
    made.no_truncation()
    made.no_padding()
    return made if _is_same(backend, made, names) else None


def _parts(merge: Any) -> tuple[str, str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right, left + right


def _is_same(backend: Any, made: Any, names: Mapping[str, str]) -> bool:
    if any(made.token_to_id(name) != backend.token_to_id(token) for token, name in names.items()):
        return False
    probes = ("Dear Ms O'Neil,\n\n  write", " x", "x ", "é日本🙂", "1234 5678\n")
    for token, name in list(names.items())[:8]:
        for before in probes:
            for after in probes:
                wanted = backend.encode(before + token + after, add_special_tokens=False).ids
                if made.encode(before + name + after, add_special_tokens=False).ids != wanted:
                    return False
    return True
