"""What clients send, and what must come of each line."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Literal

from tests.helpers.lines import URL
from tests.sim.engine import KILLER, POISON

LineKind = Literal["good", "bad", "poison", "killer", "rejected"]
# How a batch comes in: as the body of a request, as a file of a local run, as a stored file that is planned later.
Way = Literal["upload", "local", "stored"]


@dataclass(frozen=True, slots=True)
class SentLine:
    custom_id: str | None
    kind: LineKind
    text: str
    raw: bytes

    @property
    def num_words(self) -> int:
        return len(self.text.split())


@dataclass(slots=True, kw_only=True, eq=False)
class Sent:
    """A body under a key. `is_refused`: it was answered with 4xx, or must be."""

    key: str
    lines: list[SentLine]
    is_refusable: bool = False
    is_refused: bool = False
    batch_ids: set[str] = field(default_factory=set)  # that it was answered with

    @property
    def data(self) -> bytes:
        return b"".join(line.raw + b"\n" for line in self.lines)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def draw(rng: Random, key: str, pools: Sequence[str], *, num_lines: int, way: Way, odd: float) -> Sent:
    """`odd`: the share of lines with something wrong in them."""
    lines = []
    for number in range(num_lines):
        kind: LineKind = "good"
        if rng.random() < odd:
            kind = rng.choice(("bad", "poison", "killer"))
        if way == "local" and rng.random() < 0.2:
            kind = "rejected"
        lines.append(line(f"{key}-{number}", kind, rng.choice(pools), rng.randrange(1, 4), is_openai=way == "stored"))
    if way == "stored" and rng.random() < 0.1:
        lines.append(line(f"{key}-{num_lines}", "rejected", pools[0], 1))  # the whole batch will fail
    return Sent(key=key, lines=lines)


def refusable(key: str, pools: Sequence[str]) -> Sent:
    """A body whose last line cannot run, so that an upload of it is refused."""
    lines = [line(f"{key}-refused-{number}", "good", pools[0], 1) for number in range(2)]
    lines.append(SentLine(f"{key}-refused-0", "rejected", "", lines[0].raw))
    return Sent(key=key, lines=lines, is_refusable=True)


def line(custom_id: str, kind: LineKind, pool: str, num_words: int, *, is_openai: bool = False) -> SentLine:
    """Each `custom_id` has bytes of its own: the model finds a body by its digest, the store a killer by its bytes."""
    if kind == "rejected":
        broken = {"custom_id": 7.5, "params": {}, "metadata": {"name": custom_id}}
        return SentLine(None, kind, "", json.dumps(broken).encode())
    text = " ".join([custom_id] + ["word"] * (num_words - 1))
    text += {"poison": f" {POISON}", "killer": f" {KILLER}"}.get(kind, "")
    params = {"messages": [{"role": "user", "content": text}], "max_tokens": 0 if kind == "bad" else 16}
    row: dict[str, object] = {"custom_id": custom_id, "params": params, "metadata": {"model_hint": pool}}
    if is_openai:
        row = {"custom_id": custom_id, "method": "POST", "url": URL, "body": {"model": f"model-{pool}", **params}}
    return SentLine(custom_id, kind, text, json.dumps(row).encode())
