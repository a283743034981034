"""A problem with a line: where it is, what is wrong and how to fix it."""

import json
import math
import re
from dataclasses import dataclass

Path = tuple[str | int, ...]

_SHOWN_MAX = 80  # characters of a user's value that a message repeats


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """`path` leads from the line's object to the value. `column` (characters, from 1) is set only without a path.
    `at_key`: the key is wrong, not its value.

    `message` is complete on its own, as in an errored result; `fix` is one more sentence for the author of the file.
    """

    path: Path
    message: str
    fix: str = ""
    column: int | None = None
    at_key: bool = False

    @property
    def where(self) -> str:
        return place(self.path)

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.path else self.message


def place(path: Path) -> str:
    """A path as it is written in a message: `params.messages[0].content`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{short(step)}" if text else short(step)
    return text


def short(text: str) -> str:
    """The text, cut, with lone surrogates escaped: JSON can contain them, UTF-8 cannot."""
    text = text[: _SHOWN_MAX + 1].encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _SHOWN_MAX else text[: _SHOWN_MAX - 3] + "..."


def shown(value: object) -> str:
    """A value from the user's file as JSON, cut to a readable length."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{short(value)}"'
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    return "a number out of range" if value in {math.inf, -math.inf} else short(str(value))


_TOKEN = re.compile(r'\s*("(?:[^"\\]++|\\.)*+"|[{}\[\],:]|[^\s"{}\[\],:]+)', re.DOTALL)


def locate(text: str, path: Path, *, at_key: bool = False) -> int | None:
    """The column (characters, from 1) of the value at `path`, or of its key; None if it does not exist.

    If a key occurs twice, the last one counts, as in parsers.
    """
    here: list[str | int] = []  # the path of the value that is being read
    kinds: list[str] = []  # the brackets that are open
    key_column = found = None
    awaits_key = False
    goal = list(path)
    for match in _TOKEN.finditer(text):
        token, column = match[1], match.start(1) + 1
        if awaits_key and token[0] == '"':
            here[-1] = json.loads(token)
            key_column, awaits_key = column, False
        elif token in {"}", "]"}:
            if not kinds:
                return None
            kinds.pop()
            here.pop()
            awaits_key = False
        elif token == ",":
            if not kinds:
                return None
            awaits_key = kinds[-1] == "{"
            if not awaits_key:
                here[-1] = int(here[-1]) + 1
        elif token != ":":
            if here == goal:
                found = key_column if at_key else column
            if token in {"{", "["}:
                kinds.append(token)
                here.append("" if token == "{" else 0)
                awaits_key = token == "{"
    return found
