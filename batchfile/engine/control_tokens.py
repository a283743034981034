"""Keeps control tokens in the texts of a conversation from being read as tokens: there they are data.

A chat template writes its own control tokens, such as `<|im_start|>`, next to the texts of a request, and then a
tokenizer cannot tell which is whose. So one character of each token, such as `<`, is replaced by placeholders in texts
before the template runs: whatever the template joins or removes, texts then contain no token. Afterwards the tokens of
the template are renamed, the texts get their characters back, and a copy of the tokenizer that knows the control tokens
only by their new names encodes everything in one pass. So the joints are encoded as in any other text.

Only requests whose texts contain a control token, or are joined to one, take this path. Thread-safe.
"""

import json
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from batchfile.engine.token_patterns import AnyOf, Normalized, Rests
from batchfile.errors import InvalidRequest

_SPLITS = re.compile(r"""split\(\s*(['"])(.*?)\1""")
# What may make a token of a text that has none: all but to strip spaces.
_EDITS = re.compile(
    r"\.replace\(|\|\s*replace\b|\.split\(|\.remove(?:prefix|suffix)\(|[.|]\s*(?:lower|upper|title|capitalize|swapcase)\b"
    r"""|(?:strip|trim)\(\s*(['"])(?!(?:\\[nrt]|\s)*\1)"""
)
# Some tokenizers have tokens for them, which are ordinary text.
_HTML = re.compile(
    r"</?(table|caption|thead|tbody|tfoot|tr|th|td|h[1-6]|p|ul|ol|li|blockquote|strong|em|b|i|u|s|sub|sup|code|br|a)>"
)
_NOTHING = ""  # its placeholder separates a text from what the template writes before it
_CANNOT_ENCODE = (
    "The text contains {token!r}, a control token of this model, and the model's tokenizer cannot encode it as "
    "ordinary text. Remove it from the text, or set parse_control_tokens, so that it keeps its meaning."
)
_CHANGES_TEXT = (
    "The text contains a control token of this model, and the model's chat template changes the text around it. "
    "Remove the token, or set parse_control_tokens, so that it keeps its meaning."
)


Render = Callable[[list[dict[str, Any]], dict[str, Any]], str]


class ControlTokens:
    """The control tokens of a tokenizer: those that are special, those that the chat template writes, and others that
    look like markup.

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
        self._pattern = AnyOf(self._tokens)
        self._pattern_in_answers = AnyOf(set(self._tokens) - markers)
        self._normalized = Normalized.of(tokenizer, backend, set(self._tokens))
        self._normalized_in_answers = Normalized.of(tokenizer, backend, set(self._tokens) - markers)
        self._is_edited = _EDITS.search(template) is not None
        breakers = sorted({_breaker(token) for token in self._tokens}, key=len, reverse=True)
        any_breaker = "|".join(map(re.escape, breakers)) or "(?!)"
        self._signs = {token[0] for token in self._tokens}.union(breakers if self._is_edited else ())
        kept = "|".join(map(re.escape, sorted(markers.union(filter(None, split_on)))))
        self._breakers = re.compile(any_breaker)
        self._breakers_in_answers = re.compile(f"(?!{kept})(?:{any_breaker})") if kept else self._breakers
        self._rests = Rests(self._tokens, template)
        # Random, so that no text can contain a placeholder or a new name. Letters and digits, so that no template,
        # normalizer or JSON encoder changes them.
        self._placeholders = _Names(f"q{secrets.token_hex(8)}n", [*breakers, _NOTHING])
        self._new_names = _Names(f"q{secrets.token_hex(8)}n", self._tokens)
        self._backend = backend
        self._lock = threading.Lock()
        self._encoder: Any = None

    def rendered(
        self, turns: Sequence[dict[str, Any]], arguments: Mapping[str, Any], render: Render
    ) -> tuple[str, bool]:
        """What the chat template makes of these, and whether to encode that with `encode`.

        Raises: InvalidRequest if a text contains a control token that the tokenizer cannot encode as text; as `render`.
        """
        is_plain = self._normalized is None and self._rests.is_empty
        if is_plain and not any(map(self._may_have, (*turns, {"": arguments}))):
            return render(list(turns), dict(arguments)), False
        token = self._found(turns, arguments)
        if token is None and not self._may_join(turns, arguments):
            return render(list(turns), dict(arguments)), False
        if token is not None:
            self._load_encoder(token)
        hidden = render(
            [{key: self._hidden(turn[key], self._breakers_of(turn, key), key) for key in turn} for turn in turns],
            self._hidden(arguments, self._breakers),
        )
        if token is None:
            plain = render(list(turns), dict(arguments))
            made, own = self._pattern.all_in(plain), self._pattern.all_in(hidden)
            if made == own:
                return plain, False
            self._load_encoder(next((one for one in made if made.count(one) > own.count(one)), made[0] if made else ""))
        return hidden, True

    def restored(self, text: str) -> str:
        """A text that the template made, such as a message, without placeholders."""
        return self._placeholders.undone(text)

    def encode(self, rendered: str, *, adds_special_tokens: bool = False) -> list[int]:
        """The ids of a text of `rendered`. Raises: InvalidRequest."""
        text = self._placeholders.undone(self._pattern.sub(self._new_names.of_match, rendered))
        if self._placeholders.prefix in text.lower():
            raise InvalidRequest(_CHANGES_TEXT)
        ids: list[int] = self._encoder.encode(text, add_special_tokens=adds_special_tokens).ids
        return ids

    def _may_have(self, values: Mapping[str, Any]) -> bool:
        """Whether a text has a character that a token needs. Most have none, and to know that is cheap."""
        for value in values.values():
            for text in (value,) if isinstance(value, str) else _strings(value):
                for sign in self._signs:
                    if sign in text:
                        return True
        return False

    def _found(self, turns: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any]) -> str | None:
        """A control token in a text, or what the tokenizer's normalizer may make one of."""
        values = [(arguments, self._pattern, self._normalized)]
        for turn in turns:
            for key, value in turn.items():
                if key == "content" and turn["role"] == "assistant":
                    values.append((value, self._pattern_in_answers, self._normalized_in_answers))
                else:
                    values.append((value, self._pattern, self._normalized))
        for value, pattern, normalized in values:
            for text in _strings(value):
                if token := pattern.first_in(text):
                    return token
                if normalized is not None and (token := self._lookalike_in(text, normalized)):
                    return token
        return None

    def _lookalike_in(self, text: str, normalized: "Normalized") -> str | None:
        made = normalized.changed(text)
        if made is None:
            return None
        if token := normalized.pattern.first_in(made):
            return token
        is_unsafe = normalized.pattern.ends_inside(made) or (self._is_edited and self._breakers.search(made))
        return made[-20:] if is_unsafe else None

    def _may_join(self, turns: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any]) -> bool:
        """Whether the template might make a control token of several texts, or by leaving out a part of one."""
        return any(
            self._pattern.ends_inside(text)
            or (self._is_edited and self._breakers.search(text) is not None)
            or self._rests.may_end(text)
            for value in (*turns, arguments)
            for text in _strings(value)
        )

    def _hidden(self, value: Any, pattern: "re.Pattern[str]", key: str = "") -> Any:
        if key == "role":  # not a text of the request
            return value

        def hide(text: str) -> str:
            made = pattern.sub(self._placeholders.of_match, text)
            return self._placeholders.of(_NOTHING) + made if self._rests.may_end(text) else made

        return _changed(value, hide)

    def _breakers_of(self, turn: Mapping[str, Any], key: str) -> "re.Pattern[str]":
        return self._breakers_in_answers if key == "content" and turn["role"] == "assistant" else self._breakers

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
        if token.content.strip() and (token.special or _is_markup(token.content, template))
    ]


def _is_markup(content: str, template: str) -> bool:
    if content in template:
        return not content.isalnum()
    has_sign = any(not (letter.isalnum() or letter.isspace()) for letter in content)
    return has_sign and any(map(str.isalnum, content)) and _HTML.fullmatch(content) is None


def _breaker(token: str) -> str:
    """A character without which texts cannot make the token. The token if there are only those of names and JSON."""
    return next((one for one in token if not (one.isalnum() or one.isspace() or one in "\"'\\_{}:,")), token)


def _strings(value: Any) -> Iterator[str]:
    """The strings inside, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _strings(key)
            yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_changed(key, change): _changed(inner, change) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_changed(inner, change) for inner in value]
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
