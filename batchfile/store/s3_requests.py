"""Sends one request to a bucket: translates its response or boto3's exception, and limits its time.

A client's own timeouts are between two bytes. The limit here is for the whole request: it begins before the request is
sent and ends with the response, or with its headers when an object is read, because `s3_streams` limits the rest. It
grows with the size that is sent. A request that takes longer is interrupted: its connection is shut down, and the
waiting thread finds it broken. Every botocore connection in the process can be watched; only those of a client that was
passed to `guard` are.
"""

import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import botocore.exceptions as boto_errors
from botocore import awsrequest
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError as Urllib3Error

from batchfile.errors import ObjectChanged, ObjectMissing, PreconditionFailed, StoreError, StoreUnavailable, StoreUnfit
from batchfile.store.conformance import FIT_STORES

CALL_S = 60.0
COMPLETE_S = 600.0  # to complete a multipart upload: the store may combine the parts for minutes
SENT_BYTES_PER_S = 16 * 1024  # a slower link counts as broken
_TICK_S = 0.5


class NotModified(StoreError):
    """HTTP 304: the object still has the given etag."""


class PastTheEnd(StoreError):
    """HTTP 416: the range begins at or after the end of the object."""


# HTTP status -> error, advice.
_BY_STATUS: dict[int, tuple[type[StoreError], str]] = {
    301: (StoreError, "the bucket is in another region: set it (?region=...)"),
    304: (NotModified, "not modified"),
    307: (StoreError, "the bucket is in another region: set it (?region=...)"),
    401: (StoreError, "the credentials were not accepted: check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    403: (
        StoreError,
        "access was denied: check the credentials and the machine's clock, and allow "
        "s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket",
    ),
    404: (ObjectMissing, "not found"),
    408: (StoreUnavailable, "the store did not answer in time"),
    409: (StoreUnavailable, "another operation was in progress"),
    412: (ObjectChanged, "the object has changed since it was pinned"),
    416: (PastTheEnd, "the range begins after the end of the object"),
    429: (StoreUnavailable, "the store limits the request rate"),
    500: (StoreUnavailable, "the store had an internal error"),
    502: (StoreUnavailable, "the store could not be reached through its gateway"),
    503: (StoreUnavailable, "the store is busy or down"),
    504: (StoreUnavailable, "the store did not answer its gateway in time"),
}
# What some of them mean for a conditional write (some servers answer a lost race with 409 or 500).
_LOST = (PreconditionFailed, "the condition of the write does not hold, or another write won")
_BY_STATUS_CONDITIONAL: dict[int, tuple[type[StoreError], str]] = {
    404: _LOST,
    409: _LOST,
    412: _LOST,
    500: _LOST,
    501: (StoreUnfit, f"the store does not support conditional writes. {FIT_STORES}"),
}
# Codes that are more specific than their status.
_BY_CODE: dict[str, tuple[type[StoreError], str]] = {
    "NoSuchBucket": (StoreError, "the bucket does not exist: create it or correct its name"),
    "RequestTimeout": (StoreUnavailable, "the store waited too long for the request"),
    "SlowDown": (StoreUnavailable, "the store limits the request rate"),
}


def error_of_answer(what: str, status: int, code: str, *, is_conditional: bool) -> StoreError:
    """The error for an unsuccessful HTTP response. `code` is the one in S3's XML, or empty."""
    found = _BY_CODE.get(code) or (_BY_STATUS_CONDITIONAL.get(status) if is_conditional else None)
    kind, advice = found or _BY_STATUS.get(status, (StoreError, "the store rejected the request"))
    return kind(f"{what}: {advice} (HTTP {status} {code})")


# Errors before or after an HTTP response; the first match counts.
_BY_TYPE: tuple[tuple[type[Exception], type[StoreError], str], ...] = (
    (boto_errors.NoCredentialsError, StoreError, "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    (
        boto_errors.PartialCredentialsError,
        StoreError,
        "incomplete credentials: set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    ),
    (boto_errors.ParamValidationError, StoreError, "the bucket's name is invalid"),
    (boto_errors.HTTPClientError, StoreUnavailable, "the connection was interrupted"),
    (boto_errors.ConnectionError, StoreUnavailable, "no connection to the store"),
    (boto_errors.IncompleteReadError, StoreUnavailable, "the response was cut short"),
    (ResponseParserError, StoreUnavailable, "the response cannot be parsed"),
    (Urllib3Error, StoreUnavailable, "the connection was interrupted"),
    (boto_errors.BotoCoreError, StoreError, "the request could not be made"),
    (ValueError, StoreError, "the store's URL is invalid"),
)


@contextmanager
def translated(what: str, *, is_conditional: bool = False) -> Iterator[None]:
    _current.call = None  # not the previous request of this thread
    try:
        yield
    except boto_errors.ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        raise error_of_answer(what, status, code, is_conditional=is_conditional) from error
    except tuple(row[0] for row in _BY_TYPE) as error:
        call = _current.call
        if call is not None and call.is_cut:
            message = f"{what}: interrupted because it was not complete within {call.limit_s:.0f} s ({error})"
            raise StoreUnavailable(message) from error
        kind, advice = next(row[1:] for row in _BY_TYPE if isinstance(error, row[0]))
        raise kind(f"{what}: {advice} ({error})") from error


# Every 2xx response of S3 has one of these. Without it, something else has answered: a proxy or a login page.
_WITNESSES: dict[str, tuple[str, ...]] = {
    "GetObject": ("ETag",),
    "HeadObject": ("ETag",),
    "PutObject": ("ETag",),
    "ListObjectsV2": ("Name", "KeyCount", "IsTruncated", "Contents"),
    "CreateMultipartUpload": ("UploadId",),
    "UploadPart": ("ETag",),
    "CompleteMultipartUpload": ("ETag",),
}


def _must_be_an_answer(http_response: Any, parsed: Mapping[str, Any], model: Any, **_: Any) -> None:
    """A botocore hook, after each call. Raises: StoreUnavailable if something other than a store has answered."""
    witnesses = _WITNESSES.get(model.name, ())
    if witnesses and 200 <= http_response.status_code < 300 and not any(name in parsed for name in witnesses):
        kind = http_response.headers.get("Content-Type", "no content type")
        raise StoreUnavailable(
            f"{model.name} was answered with {http_response.status_code} by something other than an S3 store: "
            f"no {witnesses[0]}, {kind}. Look for a proxy or a login page between this process and the store"
        )


def bare(etag: str) -> str:
    """Without the quotes."""
    return etag.removeprefix("W/").strip('"')


@dataclass(slots=True, eq=False)
class _Call:
    """One request. `until` is monotonic. `sock`: of a response body, after the connection has released it."""

    limit_s: float
    until: float
    connection: Any = None
    sock: Any = None
    is_cut: bool = False


class _Current(threading.local):
    call: _Call | None = None


_current = _Current()


class _Watch:
    """Interrupts overdue requests. One thread per process, which sleeps while there is nothing to watch."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._calls: set[_Call] = set()
        self._thread: threading.Thread | None = None

    def add(self, call: _Call) -> None:
        with self._changed:
            self._calls.add(call)
            if self._thread is None or not self._thread.is_alive():  # as after a fork
                self._thread = threading.Thread(target=self._run, name="s3-deadlines", daemon=True)
                self._thread.start()
            elif len(self._calls) == 1:
                self._changed.notify()

    def remove(self, call: _Call) -> None:
        with self._changed:
            self._calls.discard(call)
            call.connection = call.sock = None

    def _run(self) -> None:
        with self._changed:
            while True:
                now = time.monotonic()
                for call in [call for call in self._calls if call.until <= now]:
                    if _cut(call):
                        self._calls.discard(call)
                self._changed.wait(_TICK_S if self._calls else None)


_watch = _Watch()


def _cut(call: _Call) -> bool:
    """False: not connected yet, so the connection's own timeout applies."""
    sock = call.sock or getattr(call.connection, "sock", None)
    if sock is None:
        return False
    call.is_cut = True
    with suppress(OSError):
        if isinstance(sock, socket.socket):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)  # even of TLS: its own would change how it reads
        else:  # TLS within the TLS of a proxy
            sock.close()
    return True


class _Watched:
    """A mixin for botocore's connections."""

    sock: Any

    def connect(self) -> None:
        self._show()
        super().connect()  # type: ignore[misc]

    def request(self, *args: Any, **more: Any) -> None:
        self._show()
        super().request(*args, **more)  # type: ignore[misc]

    def getresponse(self, *args: Any, **more: Any) -> Any:
        if _current.call is not None:
            _current.call.sock = self.sock
        return super().getresponse(*args, **more)  # type: ignore[misc]

    def _show(self) -> None:
        if _current.call is not None:
            _current.call.connection = self


class _WatchedHTTP(_Watched, awsrequest.AWSHTTPConnection):  # type: ignore[misc]
    pass


class _WatchedHTTPS(_Watched, awsrequest.AWSHTTPSConnection):  # type: ignore[misc]
    pass


def _install() -> None:
    """urllib3 documents `ConnectionCls` as the place for a custom class. botocore's pools must have it.

    Raises: ImportError if they do not, because then nothing here would have an effect.
    """
    kinds = ((awsrequest.AWSHTTPConnectionPool, _WatchedHTTP), (awsrequest.AWSHTTPSConnectionPool, _WatchedHTTPS))
    for pool, watched in kinds:
        if not issubclass(watched, pool.ConnectionCls):
            raise ImportError(f"{pool.__name__} of botocore creates connections that cannot be watched")
        pool.ConnectionCls = watched


_install()


def guard(client: Any) -> None:
    """Give every request of this boto3 client a time limit, and check that a store answers it."""
    events = client.meta.events
    events.register("before-send.s3", _begin)
    events.register("response-received.s3", _end)
    events.register("after-call-error.s3", _end)
    events.register("after-call.s3", _must_be_an_answer)


def _begin(request: Any, event_name: str, **_: Any) -> None:
    _end()
    sent = int(request.headers.get("Content-Length", 0))
    limit_s = (COMPLETE_S if event_name.endswith("CompleteMultipartUpload") else CALL_S) + sent / SENT_BYTES_PER_S
    _current.call = _Call(limit_s=limit_s, until=time.monotonic() + limit_s)
    _watch.add(_current.call)


def _end(**_: Any) -> None:
    if _current.call is not None:
        _watch.remove(_current.call)
