"""Words messages for callers in Python: the flag `--restart` becomes `restart=True`. Commands in backticks stay."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from batchfile.errors import BatchfileError
from batchfile.local.options import RunArguments

_COMMAND = re.compile(r"(`[^`]*`)")
_FLAG = re.compile(
    r"(?<![\w-])--([a-z]+(?:-[a-z]+)*)(?: ([A-Z][A-Z0-9_]*)\b| (echo|http|vllm)\b)?(?=[\s,;:)]|\.\s|\.?$)"
)
_KINDS: dict[str, object] = {**RunArguments.__annotations__, "store": str}


def in_python(text: str) -> str:
    """`add --sample N`, `--engine http` and `--limit was 20` become `add sample=N`, `engine="http"`, `limit was 20`."""
    return "".join(part if part.startswith("`") else _FLAG.sub(_keyword, part) for part in _COMMAND.split(text))


def _keyword(found: re.Match[str]) -> str:
    name, value, engine = found[1].replace("-", "_"), found[2], found[3]
    if name not in _KINDS:
        return found[0]
    if _KINDS[name] is bool:
        return f"{name}=True" + (f" {value or engine}" if value or engine else "")
    if engine:
        return f'{name}="{engine}"'
    return f"{name}={value}" if value else name


def saying(say: Callable[[str], None]) -> Callable[[str], None]:
    return lambda text: say(in_python(text))


@contextmanager
def worded_for_python() -> Iterator[None]:
    """Errors that are raised in it, and their notes, name keywords instead of flags."""
    try:
        yield
    except BatchfileError as error:
        error.args = (in_python(str(error)),)
        if hasattr(error, "__notes__"):
            error.__notes__ = [in_python(note) for note in error.__notes__]
        raise
