"""Hashes what decides the answer to a request: equal hashes mean the same request to the same pool. Pure.

A hash covers the raw bytes of `params`, or of `body` without its `metadata`, the format, `method` and `url`, the pool
with the adapter that `metadata.model_hint` names, and what the batch adds: its stage and all its defaults, with the
stage's JSON schema. It does not cover `custom_id` and the rest of the line's metadata. Raw bytes are strict: another
spacing or order of keys makes another request.

A request that names an image, a recording or a document by a path or a URL has no hash, because what is there may
change.
"""

import re
from functools import lru_cache
from hashlib import sha256

import msgspec

from batchfile.errors import UNREADABLE, InvalidRequest
from batchfile.lines.envelope import Envelope
from batchfile.lines.formats import native, openai_shared
from batchfile.lines.json_scan import has_repeats
from batchfile.lines.parse import kind_of, parse_request
from batchfile.types import Defaults

HASH_BYTES = 16  # of SHA-256
MEANING = 1  # raise it when the same line with the same defaults becomes another request
_CONTEXTS_KEPT = 64  # combinations of format, method, url and pool
_GENERATING = ("chat", "completion", None)  # the last: nobody knows
_METADATA = "metadata"
_QUOTED = b'"metadata"'
NAMES_MEDIA = re.compile(rb'"type"\s*:\s*"(?:input_)?(?:image|audio|document|file)')
_ESCAPED = re.compile(rb"\\u00[4-7]")  # a letter of a key or of a type

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


class _Sampling(msgspec.Struct, gc=False):
    temperature: float | None = None
    seed: int | None = None


_sampling = msgspec.json.Decoder(_Sampling)


class RequestHasher:
    """For the requests of one batch."""

    def __init__(self, defaults: Defaults, stage: str | None) -> None:
        self._defaults = defaults
        # Decoded once more: the same defaults, whether they are from a caller or from a stored record (1 becomes 1.0).
        stored = msgspec.json.decode(msgspec.json.encode(defaults), type=Defaults)
        self._added = msgspec.json.encode((MEANING, stage, stored))
        self._context = lru_cache(maxsize=_CONTEXTS_KEPT)(self._context_of)

    def of(self, envelope: Envelope, pool: str, adapter: str | None = None) -> bytes | None:
        """HASH_BYTES bytes; None if bytes elsewhere decide the answer too. `pool`: where the request runs. `adapter`:
        of the pool, which the metadata names in place of the model.
        """
        carried = envelope.carried
        # Media are in the list of a turn, in a list of turns.
        if carried.find(b"[", carried.find(b"[") + 1) >= 0 and self._names_media(envelope):
            return None
        if adapter is None:
            context = self._context(envelope.format, envelope.method, envelope.url, pool)
        else:
            context = self._context(envelope.format, envelope.method, envelope.url, pool, adapter)
        if envelope.format == "openai" and _QUOTED in carried:
            carried = _without_metadata(carried)
        return sha256(context + carried).digest()[:HASH_BYTES]

    def is_sampled(self, envelope: Envelope) -> bool:
        """Does the same request give another answer each time? True also where its sampling cannot be read."""
        if kind_of(envelope, self._defaults.url) not in _GENERATING:
            return False  # vectors, scores and classes are computed
        try:
            given = _sampling.decode(envelope.carried)
        except UNREADABLE:
            return True
        temperature = self._defaults.temperature if given.temperature is None else given.temperature
        if temperature is None:
            temperature = native.TEMPERATURE if envelope.format == "native" else openai_shared.TEMPERATURE
        return temperature > 0 and given.seed is None

    def _names_media(self, envelope: Envelope) -> bool:
        """Does the request refer to media that are not in it? True also where it cannot be read."""
        carried = envelope.carried
        is_escaped = b"\\u00" in carried and _ESCAPED.search(carried)
        if not is_escaped and not (b'"type"' in carried and NAMES_MEDIA.search(carried)):
            return False
        try:
            media = parse_request(envelope, self._defaults).media
        except InvalidRequest:
            return True
        return any(not one.source.startswith("data:") for one in media)

    def _context_of(self, *where: str | None) -> bytes:
        """Of a fixed size, so that no bytes of the context can pass for bytes of the request."""
        return sha256(msgspec.json.encode((where, self._added))).digest()


def _without_metadata(carried: bytes) -> bytes:
    """The other members, sorted and each with its sizes; `carried` itself if it has no metadata, or is not valid."""
    try:
        members = _members.decode(carried)
        if _METADATA not in members:
            return carried
        msgspec.json.decode(members.pop(_METADATA))
    except UNREADABLE:
        return carried
    if has_repeats(carried):
        return carried
    parts = [b"without metadata"]  # not an object, so no other `carried` has these bytes
    for name, value in sorted(members.items()):
        parts.append(b"%d %d %b %b" % (len(name.encode()), len(value), name.encode(), value))
    return b"\n".join(parts)
