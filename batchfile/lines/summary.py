"""What a file holds, counted while it is checked."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from batchfile.types import InputFormat

_Key = TypeVar("_Key", str, int)


class Kind(NamedTuple):
    """What a good request asks for."""

    hint: str | None
    model: str | None
    max_tokens: int


@dataclass(slots=True, kw_only=True)
class Summary:
    """Grows line by line. `num_requests` counts every line that is not blank, good or bad.

    `prompt_chars` are characters of text in good requests, `kinds` counts these.
    """

    dialect: InputFormat | None = None
    num_requests: int = 0
    num_bad: int = 0
    num_problems: int = 0
    size_bytes: int = 0
    prompt_chars: int = 0
    kinds: dict[Kind, int] = field(default_factory=dict)

    @property
    def hints(self) -> Counter[str]:
        """Good requests by the `model_hint` that they give."""
        return _sum((kind.hint, num) for kind, num in self.kinds.items() if kind.hint is not None)

    @property
    def models(self) -> Counter[str]:
        """Good requests by the model that they name."""
        return _sum((kind.model, num) for kind, num in self.kinds.items() if kind.model is not None)

    @property
    def max_tokens(self) -> Counter[int]:
        """Good requests by the tokens that they ask for at most."""
        return _sum((kind.max_tokens, num) for kind, num in self.kinds.items())

    @property
    def max_tokens_median(self) -> int | None:
        """The lower one of two in the middle; None without a good request."""
        counts = self.max_tokens
        half = (counts.total() + 1) // 2
        for value in sorted(counts):
            half -= counts[value]
            if half <= 0:
                return value
        return None


def _sum(counts: Iterable[tuple[_Key, int]]) -> Counter[_Key]:
    total: Counter[_Key] = Counter()
    for key, num in counts:
        total[key] += num
    return total
