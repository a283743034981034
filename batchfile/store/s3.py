"""An S3-compatible bucket as a store. The only module that uses boto3's clients.

Two clients: `control`, for small requests, has short timeouts and never retries by itself, because the repetition of a
conditional write can be rejected because of its own first attempt; `data` is patient and retries. Etags are passed
around without quotes; `prove` learns whether the server wants them back.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from random import uniform
from typing import Any, TypeVar
from urllib.parse import urlencode
from uuid import uuid4

import boto3
import botocore.session
from botocore.config import Config
from botocore.parsers import DEFAULT_TIMESTAMP_PARSER

from batchfile.clock import Clock
from batchfile.errors import ObjectChanged, ObjectMissing, PreconditionFailed, StoreError, StoreUnavailable, StoreUnfit
from batchfile.store.base import Entry, Object, SkippedKeys, Store, Unchanged, Writer, check_key, is_key
from batchfile.store.conformance import FIT_STORES, Proof, prove_conditions
from batchfile.store.conformance import PREFIX as PROOF_PREFIX
from batchfile.store.s3_requests import NotModified, PastTheEnd, bare, guard, translated
from batchfile.store.s3_streams import STREAM_BYTES_MIN, S3Writer, TooSlow, extent, read_chunks, read_record

DELETES_MAX = 1000  # in one request
CONTROL_BYTES_MAX = 128 * 1024  # of a conditional write; a larger one may take longer than `control` waits
READ_ATTEMPTS = 5  # for a get or a stream, in a row without a byte of progress
SLOW_ATTEMPTS = 2  # for a stream that is too slow, in a row
READ_PAUSE_S = 0.1  # before the second attempt; doubles, jittered
CONNECTIONS = 32  # per client: how many threads can use one store at once without waiting

_CONTROL = {"connect_timeout": 3, "read_timeout": 10, "retries": {"total_max_attempts": 1, "mode": "standard"}}
_DATA = {"connect_timeout": 5, "read_timeout": 60, "retries": {"total_max_attempts": 5, "mode": "standard"}}
# Newer boto3 adds checksum trailers, which several servers reject; records carry their own digests.
_BOTH = {
    "max_pool_connections": CONNECTIONS,
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
    "tcp_keepalive": True,
}
_DEFAULT_REGION = "us-east-1"  # accepted by servers without regions

T = TypeVar("T")


class S3Store(Store):
    """`prefix` is a folder in the bucket, or empty for the whole bucket. Credentials: from boto3's usual sources."""

    def __init__(
        self, bucket: str, prefix: str = "", *, endpoint_url: str | None = None, region: str | None = None
    ) -> None:
        self._bucket = bucket
        self._prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self._has_quotes = True
        self._has_batch_delete = True
        self._skipped_keys = SkippedKeys()
        query = {name: value for name, value in {"endpoint": endpoint_url, "region": region}.items() if value}
        self._url = f"s3://{bucket}/{self._prefix}".rstrip("/") + ("?" + urlencode(query, safe=":/") if query else "")
        with translated(self._url):
            session = _new_session()
            place = {"endpoint_url": endpoint_url, "region_name": region or session.region_name or _DEFAULT_REGION}
            self._control = session.client("s3", config=Config(**_CONTROL, **_BOTH), **place)
            self._data = session.client("s3", config=Config(**_DATA, **_BOTH), **place)
            for client in (self._control, self._data):
                guard(client)

    @property
    def url(self) -> str:
        return self._url

    def close(self) -> None:
        self._control.close()
        self._data.close()

    def prove(self, *, heavy: bool = False, clock: Clock | None = None) -> Proof:
        """Learn how this server wants etags, then prove that it enforces conditions. Raises: StoreUnfit."""
        self._learn_spelling()
        return prove_conditions(self, heavy=heavy, clock=clock)

    def _learn_spelling(self) -> None:
        """Some servers accept an etag only without quotes. Raises: StoreUnfit if they accept neither."""
        key = f"{PROOF_PREFIX}{uuid4().hex}.json"
        self.get(key)  # fails within seconds if the store is unreachable or access is denied
        etag = self.put(key, b"1")
        for has_quotes in (True, False):
            self._has_quotes = has_quotes
            try:
                self.put(key, b"2", match=etag)
            except PreconditionFailed:
                continue
            except StoreUnavailable:
                self._has_quotes = True  # too busy to tell; quotes are the standard
            self.delete(key)
            return
        raise StoreUnfit(f"{self._url}: a write with If-Match and the object's own etag is rejected. {FIT_STORES}")

    def get(self, key: str) -> Object | None:
        found = self._get(key, {})
        assert found != "unchanged"
        return found

    def get_if_changed(self, key: str, etag: str) -> Object | Unchanged | None:
        found = self._get(key, {"IfNoneMatch": self._spelt(etag)})
        # A server that ignores the condition costs a transfer and nothing else.
        return "unchanged" if isinstance(found, Object) and found.etag == etag else found

    def head(self, key: str) -> Entry | None:
        found = _persist(lambda: self._head(key))
        if found is None:
            return None
        modified_at = found["LastModified"].timestamp()
        return Entry(key=key, size=found["ContentLength"], etag=bare(found["ETag"]), modified_at=modified_at)

    def stream(self, key: str, start: int = 0, end: int | None = None, *, match: str | None = None) -> Iterator[bytes]:
        at, pinned = start, match
        num_failures, num_slow, slow_at = 0, 0, start
        while end is None or at < end:
            try:
                # Also after an interruption: the rest must come from the same object as the first bytes.
                answer = self._get_range(key, at, end, pinned)
                pinned = bare(answer["ETag"])
                found = extent(self._url, answer, at, end)
                with closing(read_chunks(key, answer, None if found.end is None else found.end - at)) as chunks:
                    for chunk in chunks:
                        at, num_failures = at + len(chunk), 0
                        yield chunk
                if found.wanted_end is None or at >= found.wanted_end:
                    return
                raise StoreUnavailable(f"{key}: the response ended {found.wanted_end - at:,} bytes early")
            except TooSlow:
                num_slow = num_slow + 1 if at - slow_at < STREAM_BYTES_MIN else 1
                slow_at = at
                if num_slow >= SLOW_ATTEMPTS:
                    raise
            except (StoreUnavailable, PastTheEnd) as error:
                if isinstance(error, PastTheEnd) and self._size_of(key, pinned) <= at:
                    return
                num_failures += 1
                if num_failures >= READ_ATTEMPTS:
                    raise StoreUnavailable(str(error)) from error
                _pause(num_failures)
        self._size_of(key, match)  # nothing was read: check that the pin still holds

    def put(self, key: str, data: bytes, *, absent: bool = False, match: str | None = None) -> str:
        condition = {"IfNoneMatch": "*"} if absent else {} if match is None else {"IfMatch": self._spelt(match)}
        client = self._control if condition and len(data) <= CONTROL_BYTES_MAX else self._data
        with translated(key, is_conditional=bool(condition)):
            return bare(client.put_object(**self._at(key), Body=data, **condition)["ETag"])

    def writer(self, key: str, *, is_new: bool = False) -> Writer:
        put = self._put_new if is_new else self.put
        return S3Writer(self._data, key, self._at(key), put=put, head=self.head)

    def _put_new(self, key: str, data: bytes) -> str:
        """Write a new key exactly once, because with SSE-KMS the same bytes get another etag when they are written
        again.

        Raises: PreconditionFailed if something else is there; StoreUnavailable.
        """
        for num_failures in range(1, READ_ATTEMPTS + 1):
            try:
                # This client repeats a request, which may be rejected because of its own first attempt: then the object
                # is ours.
                with translated(key, is_conditional=True):
                    return bare(self._data.put_object(**self._at(key), Body=data, IfNoneMatch="*")["ETag"])
            except PreconditionFailed as error:
                refusal = error
            found = self.get(key)
            if found is not None:
                if found.data != data:
                    raise refusal
                return found.etag
            if num_failures < READ_ATTEMPTS:
                _pause(num_failures)
        raise StoreUnavailable(f"{key}: a write failed {READ_ATTEMPTS} times; the last error: {refusal}") from refusal

    def list(self, prefix: str, *, after: str = "") -> Iterator[Entry]:
        start = {"StartAfter": self._prefix + after} if after else {}
        for page in self._pages("list_objects_v2", f"list {prefix}", prefix, **start):
            for item in page.get("Contents", ()):
                key, size = item["Key"][len(self._prefix) :], item["Size"]
                if key <= after:
                    continue
                if is_key(key):
                    modified_at = item["LastModified"].timestamp()
                    yield Entry(key=key, size=size, etag=bare(item["ETag"]), modified_at=modified_at)
                elif size or not key.endswith("/"):  # not the marker of an empty folder, as consoles create it
                    self._skipped_keys.note(
                        key, "the name cannot be a key: no empty, '.' or '..' segments, no backslash"
                    )

    def delete(self, key: str) -> None:
        try:
            with translated(key):
                self._data.delete_object(**self._at(key))
        except ObjectMissing:
            return

    def delete_many(self, keys: Sequence[str]) -> None:
        for at in range(0, len(keys), DELETES_MAX):
            some = keys[at : at + DELETES_MAX]
            for key in some if len(some) == 1 or not self._has_batch_delete else self._delete_at_once(some):
                self.delete(key)

    def _delete_at_once(self, keys: Sequence[str]) -> Sequence[str]:
        """Delete with one request; returns the keys that are left, to be deleted one by one with their errors."""
        wanted = {"Quiet": True, "Objects": [{"Key": self._at(key)["Key"]} for key in keys]}
        try:
            with translated(f"{self._url}: delete {len(keys)} objects"):
                answer = self._data.delete_objects(Bucket=self._bucket, Delete=wanted)
        except StoreUnavailable:
            raise
        except StoreError:  # a server without this request
            self._has_batch_delete = False
            return keys
        return [error["Key"][len(self._prefix) :] for error in answer.get("Errors", ())]

    def abort_uploads(self, prefix: str, *, older_s: float) -> int:
        num = 0
        for page in self._pages("list_multipart_uploads", "list unfinished uploads", prefix):
            now = _date_of(page)
            for upload in page.get("Uploads", ()):
                if now - upload["Initiated"].timestamp() >= older_s:
                    num += self._abort(upload["Key"], upload["UploadId"])
        return num

    def _pages(self, operation: str, what: str, prefix: str, **more: str) -> Iterator[Any]:
        paginator = self._data.get_paginator(operation)
        pages = iter(paginator.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix, **more))
        while True:
            with translated(f"{self._url}: {what}"):
                page = next(pages, None)
            if page is None:
                return
            yield page

    def _abort(self, full_key: str, upload_id: str) -> bool:
        """False: it is already gone, or we lack the permission."""
        try:
            with translated(full_key):
                self._data.abort_multipart_upload(Bucket=self._bucket, Key=full_key, UploadId=upload_id)
        except StoreUnavailable:
            raise
        except StoreError:
            return False
        return True

    def _get(self, key: str, condition: dict[str, str]) -> Object | Unchanged | None:
        def read() -> Object | Unchanged | None:
            try:
                with translated(key):
                    answer = self._control.get_object(**self._at(key), Range="bytes=0-", **condition)
                data = read_record(key, answer, extent(self._url, answer, 0, None))
            except ObjectMissing:
                return None
            except NotModified:
                return "unchanged"
            except PastTheEnd:  # an empty object has no range
                found = self._head(key)
                if found is None:
                    return None
                if found["ContentLength"]:
                    raise StoreUnavailable(f"{key} changed while it was read") from None
                answer, data = found, b""
            return Object(
                data=data,
                etag=bare(answer["ETag"]),
                modified_at=answer["LastModified"].timestamp(),
                read_at=_date_of(answer),
            )

        return _persist(read)

    def _head(self, key: str) -> Any | None:
        try:
            with translated(key):
                return self._control.head_object(**self._at(key))
        except ObjectMissing:
            return None

    def _get_range(self, key: str, start: int, end: int | None, pinned: str | None) -> Any:
        """Always requests a range, even for the whole object: then the response tells how long the object is.

        Raises: PastTheEnd, also for an empty object; ObjectMissing; ObjectChanged; StoreUnavailable.
        """
        last = "" if end is None else end - 1
        asked = f"bytes={start}-{last}"
        condition = {} if pinned is None else {"IfMatch": self._spelt(pinned)}
        with translated(key):
            answer = self._data.get_object(**self._at(key), Range=asked, **condition)
        if pinned is not None and bare(answer["ETag"]) != pinned:
            answer["Body"].close()
            raise ObjectChanged(f"{key} has changed since it was pinned")
        return answer

    def _size_of(self, key: str, pinned: str | None) -> int:
        entry = self.head(key)
        if entry is None:
            raise ObjectMissing(f"{key} is not in {self._url}")
        if pinned is not None and entry.etag != pinned:
            raise ObjectChanged(f"{key} has changed since it was pinned")
        return entry.size

    def _spelt(self, etag: str) -> str:
        return f'"{etag}"' if self._has_quotes else etag

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + check_key(key)}


def _new_session() -> Any:
    """A boto3 session with faster parsing of listings: dateutil takes two thirds of the 90 ms of 1,000 entries."""
    core = botocore.session.get_session()
    core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_parse_time)
    return boto3.session.Session(botocore_session=core)


def _parse_time(value: Any) -> datetime:
    try:
        found = datetime.fromisoformat(value)
    except (TypeError, ValueError):  # one of the other two formats that servers use
        found = DEFAULT_TIMESTAMP_PARSER(value)
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _persist(read: Callable[[], T]) -> T:
    """Read again if the store did not answer: reading twice is harmless."""
    num_failures = 0
    while True:
        try:
            return read()
        except StoreUnavailable:
            num_failures += 1
            if num_failures >= READ_ATTEMPTS:
                raise
            _pause(num_failures)


def _pause(num_failures: int) -> None:
    time.sleep(READ_PAUSE_S * 2**num_failures * uniform(0.5, 1.0))


def _date_of(answer: Any) -> float:
    """The server's clock when it answered, else the local one."""
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    return parsedate_to_datetime(date).timestamp() if date else time.time()
