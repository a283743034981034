"""The types for images, recordings and documents in requests. Knows no source and no decoder."""

from typing import Any, Literal

from msgspec import Struct

MediaKind = Literal["image", "audio", "document"]


class Media(Struct, frozen=True, kw_only=True):
    """An image, a recording or a document in a turn, by reference.

    `source`: a data URL, an http(s) or s3 URL, or a path relative to the folder of the input. `mime`: as the request
    states it; empty if it does not. `detail`: OpenAI's option of an image, for endpoints.
    `digest`: the SHA-256 of its bytes in hex, once they have been read. `data`: these bytes, for an engine that sends
    them; `decoded`: a Pillow image, or the samples of a recording with their rate, for one that decodes.
    """

    kind: MediaKind
    source: str
    mime: str = ""
    detail: str | None = None
    digest: str | None = None
    data: bytes | None = None
    decoded: Any = None


class MediaUse(Struct, frozen=True, kw_only=True):
    """What an engine takes: no media by default. `is_sent`: as they are, instead of decoded. Documents become text."""

    kinds: frozenset[MediaKind] = frozenset()
    is_sent: bool = False
