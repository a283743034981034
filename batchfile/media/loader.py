"""Turns the references of a request into what an engine takes, before the engine needs it."""

import os
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from threading import Lock
from time import sleep
from typing import Any, TypeVar

from msgspec.structs import replace

from batchfile.errors import InvalidRequest
from batchfile.media.budget import FetchBudget, NoRoom, ObjectRoom, Share
from batchfile.media.cache import MediaCache
from batchfile.media.decode import Recording, open_image, pixels_of, read_text, read_wav
from batchfile.media.rules import MediaRules, in_words, scheme_of, shown
from batchfile.media.sources import Sources, from_data_url
from batchfile.request_media import Media, MediaKind, MediaUse
from batchfile.types import Message, Request

LOADED_BYTES_MAX = 24 * 1024 * 1024  # of media that wait for an engine
FIRST_BYTES = 256 * 1024  # the room with which the fetch of an object begins
PIXEL_BYTES = 4  # in Pillow's memory
DECODERS = min(4, os.cpu_count() or 1)  # few: each thread keeps memory for the largest image that it has decoded
JOINT = "\n\n"
POLL_S = 0.01

T = TypeVar("T")

_NOT_SERVED = "this pool's model does not take {kind}; remove {it}, or name a model that does"
_NAMES: dict[MediaKind, tuple[str, str]] = {
    "image": ("images", "the image"),
    "audio": ("audio", "the recording"),
    "document": ("documents", "the document"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A request whose media are with it. `media`: their kinds and digests. `size`: bytes that they take in memory."""

    request: Request
    media: tuple[Media, ...]
    size: int


class DecodeGate:
    """Lets images be decoded while there is room for their pixels: bounds the memory of what waits for an engine.

    `held`: bytes that wait now. One at a time waits here; the engine makes room.
    """

    def __init__(self, held: Callable[[], int], is_over: Callable[[], bool], bytes_max: int = LOADED_BYTES_MAX) -> None:
        self._held, self._is_over, self._bytes_max = held, is_over, bytes_max
        self._turn, self._lock = Lock(), Lock()
        self._reserved = 0

    @property
    def is_open(self) -> bool:
        return self._held() + self._reserved < self._bytes_max

    @contextmanager
    def room(self, size: int) -> Generator[None]:
        limit = max(self._bytes_max, size + self._bytes_max // 2)  # a larger one than all waits until most is gone
        with self._turn:
            while self._held() + self._reserved + size > limit and not self._is_over():
                sleep(POLL_S)
            with self._lock:
                self._reserved += size
        try:
            yield
        finally:
            with self._lock:
                self._reserved -= size


class MediaLoader:
    """Loads requests for one engine after another; what it fetched stays in its cache. Thread-safe."""

    def __init__(
        self,
        room: Callable[[int], AbstractContextManager[None]],
        cache: MediaCache | None = None,
        budget: FetchBudget | None = None,
    ) -> None:
        self._room = room
        self._cache = cache or MediaCache()
        self._budget = budget or FetchBudget()
        self._sources = Sources()
        self._decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="media-decoder")  # starts them when needed

    @contextmanager
    def load(self, request: Request, rules: MediaRules, use: MediaUse, batch_id: str = "") -> Iterator[Loaded]:
        """The request with its media; documents become text. While entered, the room for its size is reserved.

        An object is fetched again for another batch, because it may have changed. Raises: InvalidRequest that names the
        source.
        """
        media = request.media
        if len(media) > rules.limits.objects:
            found = f"the request has {len(media):,} images, recordings and documents"
            raise rules.above(found, f"{rules.limits.objects:,}", "objects_max")
        places = [_place(one, number, len(media)) for number, one in enumerate(media, 1)]
        for one, place in zip(media, places, strict=True):
            _named(place, partial(_check, one, rules, use))
        with ExitStack() as room:
            with self._budget.share() as share:
                fetched, decoded = list[Media](), 0
                for place, one in zip(places, media, strict=True):
                    fetched.append(_named(place, partial(self._fetched, one, rules, use, batch_id, share)))
                    decoded += _decoded_bytes(fetched[-1])
                    _check_memory(share.size + decoded, rules)
                size = sum(_size(one) for one in fetched)
                room.enter_context(self._room(size))
                ready = self._decoders.map(partial(_decoded_at, use), places, fetched)
                messages = tuple(_with_media(turn, ready) if turn.parts else turn for turn in request.messages)
                digests = tuple(Media(kind=one.kind, source="", digest=one.digest) for one in fetched)
                fetched.clear()
            yield Loaded(request=replace(request, messages=messages), media=digests, size=size)

    def _fetched(self, media: Media, rules: MediaRules, use: MediaUse, batch_id: str, share: Share) -> Media:
        """With its `data`, and an image opened in `decoded`; a recording has `decoded` alone. Unchanged if the engine's
        server reads it itself.
        """
        scheme = scheme_of(media.source)
        if scheme == "data":
            share.take(len(media.source) * 3 // 4)
            data = from_data_url(media.source, rules)
        elif scheme in {"http", "https"} and _is_sent(media, use):
            return media
        else:
            data = self._read(media.source, rules, batch_id, share)
        read = replace(media, data=data, digest=sha256(data).hexdigest())
        if media.kind == "document" or _is_sent(media, use):
            return read
        if media.kind == "audio":
            return _with_decoded(read, read_wav(data))
        return replace(read, decoded=open_image(data, rules))

    def _read(self, source: str, rules: MediaRules, batch_id: str, share: Share) -> bytes:
        """From the cache or the source. Waits for room only while nothing is open and nobody waits for this fetch."""
        key = source if scheme_of(source) else str(rules.file(source))
        held, size = share.size, min(FIRST_BYTES, rules.limits.object_bytes)
        fetch = partial(self._sources.fetch, source, rules, ObjectRoom(share, held).need)
        while True:
            share.take(size)
            try:
                data = self._cache.get((batch_id, key), fetch)
            except NoRoom as error:
                share.resize(held)
                size = max(error.size, 2 * size)
            else:
                share.resize(held + len(data))
                return data


def _is_sent(media: Media, use: MediaUse) -> bool:
    return use.is_sent and media.kind != "document"


def _check(media: Media, rules: MediaRules, use: MediaUse) -> None:
    if media.kind != "document" and media.kind not in use.kinds:
        kind, it = _NAMES[media.kind]
        raise InvalidRequest(_NOT_SERVED.format(kind=kind, it=it))
    rules.check(media.source)


def _check_memory(size: int, rules: MediaRules) -> None:
    if size > rules.limits.request_bytes:
        found = f"the media of the request take {in_words(size)} of memory or more"
        raise rules.above(found, in_words(rules.limits.request_bytes), "request_bytes_max")


def _decoded_bytes(media: Media) -> int:
    opened = media.decoded
    if isinstance(opened, Recording):
        return opened.memory
    return 0 if opened is None else int(opened.width) * int(opened.height) * PIXEL_BYTES


def _size(media: Media) -> int:
    """What is left of it once it is decoded."""
    return _decoded_bytes(media) or len(media.data or b"")


def _decoded_at(use: MediaUse, place: str, media: Media) -> Media:
    return _named(place, partial(_decoded, media, use))


def _decoded(media: Media, use: MediaUse) -> Media:
    if media.data is None or _is_sent(media, use):
        return media
    if media.kind == "document":
        return replace(media, decoded=read_text(media.data))
    return _with_decoded(media, pixels_of(media.decoded))


def _with_decoded(media: Media, decoded: Any) -> Media:
    """The encoded bytes are not needed any more."""
    source = shown(media.source) if scheme_of(media.source) == "data" else media.source
    return replace(media, source=source, data=None, decoded=decoded)


def _with_media(turn: Message, ready: Iterator[Media]) -> Message:
    parts: list[str | Media] = []
    for part in turn.parts:
        media = part if isinstance(part, str) else next(ready)
        parts.append(media if isinstance(media, str) or media.kind != "document" else str(media.decoded))
    text = JOINT.join(part for part in parts if isinstance(part, str))
    has_media = any(isinstance(part, Media) for part in parts)
    return replace(turn, content=text, parts=tuple(parts) if has_media else ())


def _place(media: Media, number: int, total: int) -> str:
    """For messages. What is in the request itself is identified by its number."""
    place = f'"{shown(media.source)}"'
    return f"{place} ({number} of {total})" if total > 1 and scheme_of(media.source) == "data" else place


def _named(place: str, work: Callable[[], T]) -> T:
    """Names the source in errors."""
    try:
        return work()
    except InvalidRequest as error:
        raise InvalidRequest(f"{place}: {error}", error.type) from error
