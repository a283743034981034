"""Streams stored lines as HTTP responses, with gzip and range requests, and finds this service's base URL for links.

Reads the store in threads. Memory holds a chunk or two, whatever the size. The caller renders the API format.
"""

import asyncio
import re
import threading
import zlib
from collections.abc import AsyncIterator, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from litestar import Response
from litestar.background_tasks import BackgroundTask
from litestar.response import Stream

from batchfile.ledger.base import Ledger
from batchfile.ledger.records import FileRef
from batchfile.ledger.tail import Cursor, iter_live
from batchfile.settings_tables import Api

from .auth import ENDLESS
from .errors import AnyRequest, Refusal
from .openapi import JSON_LINES

GZIP_LEVEL = 1  # compressing a chunk costs less time than its transfer saves
LIVE_CHUNK_BYTES = 256 * 1024
LOOK_AGAIN_S = 1.0

_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}")
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes [start, end) of a file."""

    start: int
    end: int


def stream(request: AnyRequest, chunks: Iterable[bytes], media_type: str) -> Response[Any]:
    """A response of unknown length. Its first chunk is read before the status, so that errors get their own status."""
    headers = {"Vary": "Accept, Accept-Encoding, Authorization, Anthropic-Version"}
    parts = iter(chunks)
    if _wants_gzip(request):
        parts = _gzip(parts)
        headers["Content-Encoding"] = "gzip"
    streamed = _streamed(parts, media_type=media_type, headers=headers)
    if request.scope["method"] == "HEAD":
        return Response(b"", media_type=media_type, headers=headers, background=streamed.background)
    return streamed


def serve_file(request: AnyRequest, ledger: Ledger, file: FileRef, media_type: str = JSON_LINES) -> Response[Any]:
    """A stored file, unchanged. Supports HEAD, If-None-Match and one Range; gzip only without a range.

    The gzip response has its own ETag, so that no client resumes one with a range of the other.
    """
    etag, packed_etag = f'"{file.sha256[:32]}"', f'"{file.sha256[:32]}-gzip"'
    if_range = request.headers.get("if-range")
    span = None if if_range not in {None, etag} else asked_range(request.headers.get("range"), file.size)
    is_gzip = span is None and _wants_gzip(request)
    headers = {"ETag": packed_etag if is_gzip else etag, "Vary": "Accept, Accept-Encoding, Authorization"}
    if names_any(request.headers.get("if-none-match", ""), {etag, packed_etag}):
        return Response(None, status_code=304, headers=headers)
    if not is_gzip:
        headers["Accept-Ranges"] = "bytes"
    if span is not None:
        headers["Content-Range"] = f"bytes {span.start}-{span.end - 1}/{file.size}"
    part = span or ByteRange(0, file.size)
    headers |= {"Content-Encoding": "gzip"} if is_gzip else {"Content-Length": str(part.end - part.start)}
    status = 200 if span is None else 206
    if request.scope["method"] == "HEAD" or part.start == part.end:
        return Response(b"", status_code=status, headers=headers, media_type=media_type)
    chunks: Iterator[bytes] = ledger.store.stream(file.key, part.start, part.end)
    return _streamed(_gzip(chunks) if is_gzip else chunks, status_code=status, headers=headers, media_type=media_type)


def follow(request: AnyRequest, ledger: Ledger, batch_id: str) -> Stream:
    """Results as they are committed until the batch ends, in any order. Ends when the server stops."""
    request.scope[ENDLESS] = True  # type: ignore[literal-required]
    return _streamed(_landing(ledger, batch_id), media_type=JSON_LINES)


def _streamed(chunks: Iterator[bytes], **more: Any) -> Stream:
    feed = _Feed(chunks)
    return Stream(feed.rest(feed.next()), background=BackgroundTask(feed.close), **more)


def _landing(ledger: Ledger, batch_id: str) -> Iterator[bytes]:
    """Results in chunks; an empty chunk if there are no new ones yet."""
    cursor = Cursor()
    while not cursor.is_over:
        lines: list[bytes] = []
        size = 0
        for line in iter_live(ledger, batch_id, cursor):
            lines += (line.result, b"\n")
            size += len(line.result)
            if size >= LIVE_CHUNK_BYTES:
                yield b"".join(lines)
                lines, size = [], 0
        if lines:
            yield b"".join(lines)
        if not cursor.is_over:
            yield b""


def asked_range(header: str | None, size: int) -> ByteRange | None:
    """The range of a `Range` header; None: send all (no header, several ranges, or an unsupported one).

    Raises: Refusal 416 if the range is outside the file.
    """
    found = _RANGE.fullmatch((header or "").replace(" ", ""))
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    start, end = (int(first), int(last) + 1 if last else size) if first else (max(0, size - int(last)), size)
    if first and last and int(last) < int(first):
        return None
    if start >= size:
        raise Refusal(416, f"The range starts after the file's {size} bytes.", {"Content-Range": f"bytes */{size}"})
    return ByteRange(start, min(end, size))


def names_any(if_none_match: str, etags: set[str]) -> bool:
    """Does `If-None-Match` (ETags, weak or not, or `*`) match any of `etags`?"""
    named = {item.strip().removeprefix("W/") for item in if_none_match.split(",")}
    return "*" in named or not named.isdisjoint(etags)


def _wants_gzip(request: AnyRequest) -> bool:
    """Is gzip among the accepted encodings, and not with q=0?"""
    for item in request.headers.get("accept-encoding", "").lower().split(","):
        name, _, q = item.partition(";")
        if name.strip() in {"gzip", "*"}:
            return q.replace(" ", "") not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}
    return False


def _gzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
    packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31)
    for chunk in chunks:
        packed = packer.compress(chunk)
        if packed:
            yield packed
    yield packer.flush()


class _Feed:
    """Chunks that threads fetch, one at a time. `close` releases the store at once, even if it is still referenced."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._lock = threading.Lock()  # a thread may still be fetching a chunk after the client has gone

    def next(self) -> bytes | None:
        with self._lock:
            return next(self._chunks, None)

    async def rest(self, first: bytes | None) -> AsyncIterator[bytes]:
        chunk = first
        while chunk is not None:
            if chunk:
                yield chunk
            else:
                await asyncio.sleep(LOOK_AGAIN_S)
            chunk = await asyncio.to_thread(self.next)

    def close(self) -> None:
        with self._lock:
            if isinstance(self._chunks, Generator):
                self._chunks.close()


def own_url(request: AnyRequest, api: Api) -> str:
    """`https://host[/prefix]` without a trailing slash; "" if it is unknown, and then links are relative.

    `api.public_url` if it is set, otherwise the request's own host. Proxy headers count only if the settings trust
    them, because a caller sends its key to such a link.
    """
    if api.public_url:
        return api.public_url.rstrip("/")
    scheme, host = str(request.scope["scheme"]), request.headers.get("host", "")
    if api.trust_forwarded:
        scheme = _first(request, "x-forwarded-proto") or scheme
        host = _first(request, "x-forwarded-host") or host
    return f"{scheme}://{host}" if scheme in {"http", "https"} and _HOST.fullmatch(host) else ""


def _first(request: AnyRequest, name: str) -> str:
    """The value from the proxy nearest to the caller."""
    return request.headers.get(name, "").partition(",")[0].strip()
