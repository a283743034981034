"""Large objects of a bucket: bodies that are read within time limits, and streamed writes.

A client's own timeouts are between two bytes: at one byte now and then, a record would block its reader for hours. A
body that is shorter than promised is an error. A write is a multipart upload with several parts at a time; small data
becomes a single put.
"""

import re
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

from batchfile.errors import ObjectMissing, StoreError, StoreUnavailable, StoreUnfit
from batchfile.store.base import Entry, Writer
from batchfile.store.conformance import FIT_STORES
from batchfile.store.s3_requests import bare, translated

CHUNK_BYTES = 1024 * 1024
RECORD_S = 30.0  # for a whole object that is read at once, and for each further `RECORD_BYTES`
RECORD_BYTES = 2 * 1024 * 1024
STREAM_WINDOW_S = 60.0  # in which a stream must return `STREAM_BYTES_MIN` or end
STREAM_BYTES_MIN = 64 * 1024
_PIECE_BYTES = 256 * 1024  # the most to read at a time
_PASS_ON_S = 1.0  # a reader of a slow stream gets control this often: it may have a lease to renew
PART_BYTES = 16 * 1024 * 1024  # all parts but the last have this size (R2 wants them equal)
PARTS_MAX = 10_000  # S3's limit
PARTS_AT_ONCE = 3  # in flight, in addition to the one being filled: at most four are in memory

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class TooSlow(StoreUnavailable):
    """Bytes came, but too few. Reading on returns more, and may take forever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseEnd:
    """What a response contains of an object: up to `end` (None: read to the end), and how far it should have gone."""

    end: int | None
    wanted_end: int | None


def extent(what: str, answer: Any, start: int, end: int | None) -> ResponseEnd:
    """Of the response to a read of the range [start, end). Raises: StoreUnfit if it has another range."""
    found = _CONTENT_RANGE.fullmatch(answer.get("ContentRange") or "")
    if found is not None:
        first, stop, total = int(found[1]), int(found[2]) + 1, found[3]
        wanted = end if total == "*" else min(int(total), int(total) if end is None else end)
        if first == start and (end is None or stop <= end):
            return ResponseEnd(end=stop, wanted_end=wanted)
    elif start == 0:
        length = answer.get("ContentLength")
        if end is None or (length is not None and length <= end):
            return ResponseEnd(end=length, wanted_end=length)
    raise StoreUnfit(f"{what} ignores the range of a read. {FIT_STORES}")


def read_record(key: str, answer: Any, found: ResponseEnd) -> bytes:
    """The whole body. Raises: StoreUnavailable if it is too slow or ends early."""
    limit_s = RECORD_S * (1 + (found.end or 0) // RECORD_BYTES)
    started_at, data = time.monotonic(), bytearray()
    with closing(_pieces(key, answer, found.end)) as pieces:
        for piece in pieces:
            data += piece
            if len(data) != found.end and time.monotonic() - started_at > limit_s:
                raise StoreUnavailable(f"{key}: only {len(data):,} bytes arrived in {limit_s:.0f} s")
    if found.wanted_end is not None and len(data) < found.wanted_end:
        raise StoreUnavailable(f"{key}: the response ended {found.wanted_end - len(data):,} bytes early")
    return bytes(data)


def read_chunks(key: str, answer: Any, length: int | None) -> Generator[bytes, None, None]:
    """`length` bytes (None: all) in chunks of at most 1 MiB.

    What came before an error is returned first. Raises: TooSlow; StoreUnavailable if the body ends early.
    """
    pending, passed_on_at = bytearray(), time.monotonic()
    with closing(_pieces(key, answer, length)) as pieces:
        try:
            for piece in pieces:
                pending += piece
                if len(pending) > CHUNK_BYTES - _PIECE_BYTES or time.monotonic() - passed_on_at >= _PASS_ON_S:
                    yield bytes(pending)
                    pending, passed_on_at = bytearray(), time.monotonic()
        except StoreUnavailable:
            if pending:
                yield bytes(pending)
            raise
    if pending:
        yield bytes(pending)


def _pieces(key: str, answer: Any, length: int | None) -> Generator[bytes, None, None]:
    """Pieces as they arrive, so that nothing waits for more. The reader's time between two pieces does not count.

    Raises: TooSlow if too few bytes arrive in a window of time; StoreUnavailable if the body ends early.
    """
    left, num_in_window, window_s = length, 0, 0.0
    with answer["Body"] as raw:  # urllib3's own response: botocore's `read` waits until it has everything
        while left is None or left > 0:
            asked_at = time.monotonic()
            with translated(key):
                piece = raw.read1(_PIECE_BYTES if left is None else min(_PIECE_BYTES, left))
            window_s += time.monotonic() - asked_at
            if not piece:
                if left:
                    raise StoreUnavailable(f"{key}: the response ended {left:,} bytes early")
                return
            num_in_window += len(piece)
            if left is not None:
                left -= len(piece)
            yield piece
            if window_s >= STREAM_WINDOW_S and left != 0:
                if num_in_window < STREAM_BYTES_MIN:
                    raise TooSlow(f"{key}: only {num_in_window:,} bytes arrived in {window_s:.0f} s")
                num_in_window, window_s = 0, 0.0
        if length is not None:
            with translated(key):
                raw.read1(1)  # read to the end, so that the connection can be reused


class S3Writer(Writer):
    """Nothing is visible before `commit`. A part that could not be sent raises at the next call."""

    def __init__(
        self,
        client: Any,
        key: str,
        at: dict[str, str],
        *,
        put: Callable[[str, bytes], str],
        head: Callable[[str], Entry | None],
    ) -> None:
        self._client = client
        self._key = key
        self._at = at
        self._put = put
        self._head = head
        self._buffer = bytearray()
        self._upload: dict[str, str] | None = None
        self._senders: ThreadPoolExecutor | None = None
        self._on_their_way: deque[Future[dict[str, Any]]] = deque()
        self._parts: list[dict[str, Any]] = []
        self._num_bytes = 0

    def write(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= PART_BYTES:
            self._send(bytes(memoryview(self._buffer)[:PART_BYTES]))
            del self._buffer[:PART_BYTES]

    def commit(self) -> str:
        if self._upload is None:
            return self._put(self._key, bytes(self._buffer))
        if self._buffer:
            self._send(bytes(self._buffer))
        while self._on_their_way:
            self._parts.append(self._on_their_way.popleft().result())
        try:
            with translated(self._key):
                answer = self._client.complete_multipart_upload(
                    **self._at, **self._upload, MultipartUpload={"Parts": self._parts}
                )
                etag = bare(answer["ETag"])
        except ObjectMissing:
            # A repeated request no longer finds the upload that its lost first attempt completed.
            entry = self._head(self._key)
            if entry is None or entry.size != self._num_bytes:
                raise
            etag = entry.etag
        self._upload = None
        return etag

    def __exit__(self, *error: object) -> None:
        self._buffer.clear()
        if self._senders is not None:
            self._senders.shutdown(cancel_futures=True)  # no part may arrive after the upload was aborted
        if self._upload is None:
            return
        with suppress(StoreError), translated(self._key):  # an upload that stays behind is invisible; buckets expire it
            self._client.abort_multipart_upload(**self._at, **self._upload)
        self._upload = None

    def _send(self, data: bytes) -> None:
        number = len(self._parts) + len(self._on_their_way) + 1
        if number > PARTS_MAX:
            raise StoreError(f"{self._key}: is larger than {PARTS_MAX} parts of {PART_BYTES} bytes; split the batch")
        if self._senders is None:
            with translated(self._key):
                answer = self._client.create_multipart_upload(**self._at)
            self._upload = {"UploadId": answer["UploadId"]}
            self._senders = ThreadPoolExecutor(PARTS_AT_ONCE, thread_name_prefix="parts")
        if len(self._on_their_way) == PARTS_AT_ONCE:
            self._parts.append(self._on_their_way.popleft().result())
        self._on_their_way.append(self._senders.submit(self._send_part, number, data))
        self._num_bytes += len(data)

    def _send_part(self, number: int, data: bytes) -> dict[str, Any]:
        with translated(self._key):
            answer = self._client.upload_part(**self._at, **self._upload or {}, PartNumber=number, Body=data)
        return {"PartNumber": number, "ETag": answer["ETag"]}
