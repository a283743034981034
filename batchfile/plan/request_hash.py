"""Hashes what decides the answer to a request: equal hashes mean the same request to the same pool. Pure.

A hash covers the raw bytes of `params`, or of `body` without its `metadata`, the format, `method` and `url`, the pool
with the adapter that `metadata.model_hint` names, and what the batch adds: its stage and all its defaults, with the
stage's JSON schema. It does not cover `custom_id` and the rest of the line's metadata. Raw bytes are strict: another
spacing or order of keys makes another request.

Of media that are named by a path, the hash covers the bytes: their digests, which the caller knows. A request with one
whose digest is unknown has no hash, and neither has a request with media by URL, because what is there may change.
"""

import re
from collections.abc import Callable
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

_ELSEWHERE = frozenset({"http", "https", "s3"})  # schemes of URLs

DigestOf = Callable[[str], bytes | None]  # the source of media -> the SHA-256 of its bytes; None: unknown

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


class _Sampling(msgspec.Struct, gc=False):
    temperature: float | None = None
    seed: int | None = None


_sampling = msgspec.json.Decoder(_Sampling)


class RequestHasher:
    """For the requests of one batch. `digest_of`: of a file that a request names by its path.

    `num_by_url`: how many requests have no hash because they have media by URL. `has_files`: does any hash cover files?
    """

    def __init__(self, defaults: Defaults, stage: str | None, digest_of: DigestOf = lambda source: None) -> None:
        self.num_by_url = 0
        self.has_files = False
        self._defaults = defaults
        self._digest_of = digest_of
        # Decoded once more: the same defaults, whether they are from a caller or from a stored record (1 becomes 1.0).
        stored = msgspec.json.decode(msgspec.json.encode(defaults), type=Defaults)
        self._added = msgspec.json.encode((MEANING, stage, stored))
        self._context = lru_cache(maxsize=_CONTEXTS_KEPT)(self._context_of)

    def of(self, envelope: Envelope, pool: str, adapter: str | None = None) -> bytes | None:
        """HASH_BYTES bytes; None if bytes elsewhere decide the answer too. `pool`: where the request runs. `adapter`:
        of the pool, which the metadata names in place of the model.
        """
        carried, media = envelope.carried, b""
        # Media are in the list of a turn, in a list of turns.
        if carried.find(b"[", carried.find(b"[") + 1) >= 0 and may_name_media(carried):
            digests = self._digests(envelope)
            if digests is None:
                return None
            media = b"".join(digests)
        if adapter is None:
            context = self._context(envelope.format, envelope.method, envelope.url, pool)
        else:
            context = self._context(envelope.format, envelope.method, envelope.url, pool, adapter)
        if media:
            self.has_files = True
            context = sha256(context + media).digest()
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

    def is_made_of(self, envelope: Envelope, result: bytes) -> bool:
        """Does `result`, of an equal request, name the same media? A file may have changed after its hash was made."""
        digests = self._digests(envelope)
        return digests is not None and all(digest.hex().encode() in result for digest in digests)

    def _digests(self, envelope: Envelope) -> list[bytes] | None:
        """Of the media that the request refers to; None where one is unknown, or the request cannot be read."""
        try:
            media = parse_request(envelope, self._defaults).media
        except InvalidRequest:
            return None
        sources = [one.source for one in media if not one.source.startswith("data:")]
        if any(source.partition(":")[0].lower() in _ELSEWHERE for source in sources):
            self.num_by_url += 1
            return None
        digests = [self._digest_of(source) for source in sources]
        known = [digest for digest in digests if digest is not None]
        return known if len(known) == len(digests) else None

    def _context_of(self, *where: str | None) -> bytes:
        """Of a fixed size, so that no bytes of the context can pass for bytes of the request."""
        return sha256(msgspec.json.encode((where, self._added))).digest()


def may_name_media(request: bytes) -> bool:
    """Must the request be parsed to know whether it has media? False for nearly every one without."""
    if b"\\u00" in request and _ESCAPED.search(request):
        return True
    return b'"type"' in request and NAMES_MEDIA.search(request) is not None


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
