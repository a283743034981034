"""A streamed write to a bucket: a multipart upload, several parts at a time; what stays small becomes a single put."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from batchfile.errors import ObjectMissing, StoreError
from batchfile.store.base import Entry
from batchfile.store.s3_errors import bare, translated

PART_BYTES = 16 * 1024 * 1024  # all but the last are this large (R2 wants them equal)
PARTS_MAX = 10_000  # S3's limit
PARTS_AT_ONCE = 3  # on their way, besides the one that is gathered: memory holds four


class S3Writer:
    """Nothing is there before `commit`. A part that could not be sent is an error of the next call."""

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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._buffer.clear()
        if self._senders is not None:
            self._senders.shutdown(cancel_futures=True)  # no part may arrive after the upload was given up
        if self._upload is None:
            return
        with suppress(StoreError), translated(self._key):  # what stays behind is invisible; buckets expire it
            self._client.abort_multipart_upload(**self._at, **self._upload)
        self._upload = None

    def _send(self, data: bytes) -> None:
        number = len(self._parts) + len(self._on_their_way) + 1
        if number > PARTS_MAX:
            raise StoreError(f"{self._key}: larger than {PARTS_MAX} parts of {PART_BYTES} bytes; split the batch")
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
