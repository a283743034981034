"""What decides the answers of an engine, apart from the request: named parts, and one short digest of them all."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

RENDERING = "4"  # raise it when the same request becomes another prompt or guide, or the same answer another result

DIGEST = "sha256:"  # begins a value that says nothing to people
CONTEXT_LENGTH = "the context length"  # a part
_DIGITS = 16


@dataclass(frozen=True, slots=True)
class EngineIdentity:
    """`parts`: a name for people, such as `the chat template`, and its value or digest.

    Results of one identity may be used for equal requests to another with the same `fingerprint`.
    """

    parts: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        text = msgspec.json.encode([RENDERING, self.parts], order="sorted")
        return hashlib.sha256(text).hexdigest()[:_DIGITS]


def digest_of(chunks: Iterable[bytes]) -> str:
    """A value for a part: of these bytes."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return DIGEST + digest.hexdigest()[:_DIGITS]
