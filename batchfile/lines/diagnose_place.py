"""Where in a line a value stands. Slow, and run for bad lines only; the line is valid JSON."""

import json
import re

from batchfile.lines.diagnostics import Path

_TOKEN = re.compile(r'\s*("(?:[^"\\]++|\\.)*+"|[{}\[\],:]|[^\s"{}\[\],:]+)', re.DOTALL)


def locate(text: str, path: Path, *, at_key: bool = False) -> int | None:
    """The column (characters, from 1) of the value at `path`, or of its key; None where there is none.

    Of a key that stands twice the last is meant, as parsers read it.
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
