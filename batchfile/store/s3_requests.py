"""One request to a bucket: what its answer or the exception of boto3 means as an error of ours, and its time limit.

A client's own timeouts are between two bytes. The limit here is for the whole request: it begins before the request is
sent and ends with the answer, or with the head of it where an object is read, because `s3_streams` has limits for the
rest. It grows with what is sent. A request that takes longer is broken off: its connection is shut down, and the thread
that waits there finds it broken. Every connection of botocore in the process can be watched; only those of a client
that was given to `guard` are.
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
COMPLETE_S = 600.0  # of an upload in parts: the store may put them together for minutes
SENT_BYTES_PER_S = 16 * 1024  # a slower link is taken for a broken one
_TICK_S = 0.5


class NotModified(StoreError):
    """HTTP 304: the object still has the etag that was given."""


class PastTheEnd(StoreError):
    """HTTP 416: the range begins at or after the end of the object."""


# HTTP status -> error, what to do.
_BY_STATUS: dict[int, tuple[type[StoreError], str]] = {
    301: (StoreError, "the bucket is in another region: give it (?region=...)"),
    304: (NotModified, "not modified"),
    307: (StoreError, "the bucket is in another region: give it (?region=...)"),
    401: (StoreError, "the credentials were not accepted: check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    403: (
        StoreError,
        "access was denied: check the credentials, the machine's clock, and that they allow "
        "s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket",
    ),
    404: (ObjectMissing, "not found"),
    408: (StoreUnavailable, "the store did not answer in time"),
    409: (StoreUnavailable, "another operation was under way"),
    412: (ObjectChanged, "the object is not the one that was pinned any more"),
    416: (PastTheEnd, "the range begins after the end of the object"),
    429: (StoreUnavailable, "the store asks for fewer requests"),
    500: (StoreUnavailable, "the store had an error inside"),
    502: (StoreUnavailable, "the store could not be reached through its gateway"),
    503: (StoreUnavailable, "the store is busy or down"),
    504: (StoreUnavailable, "the store did not answer its gateway in time"),
}
# What else these mean as the answer to a conditional write (some servers give a lost race 409 or 500).
_LOST = (PreconditionFailed, "the condition of the write does not hold, or its race was lost")
_BY_STATUS_CONDITIONAL: dict[int, tuple[type[StoreError], str]] = {
    404: _LOST,
    409: _LOST,
    412: _LOST,
    500: _LOST,
    501: (StoreUnfit, f"the store has no conditional writes. {FIT_STORES}"),
}
# Codes that say more than their status.
_BY_CODE: dict[str, tuple[type[StoreError], str]] = {
    "NoSuchBucket": (StoreError, "the bucket does not exist: create it or correct its name"),
    "RequestTimeout": (StoreUnavailable, "the store waited too long for the request"),
    "SlowDown": (StoreUnavailable, "the store asks for fewer requests"),
}


def error_of_answer(what: str, status: int, code: str, *, is_conditional: bool) -> StoreError:
    """The error for an HTTP answer that was no success. `code` is the one in S3's XML, or empty."""
    found = _BY_CODE.get(code) or (_BY_STATUS_CONDITIONAL.get(status) if is_conditional else None)
    kind, advice = found or _BY_STATUS.get(status, (StoreError, "the store refused the request"))
    return kind(f"{what}: {advice} (HTTP {status} {code})")


# Errors from before or after an HTTP answer; the first that fits.
_BY_TYPE: tuple[tuple[type[Exception], type[StoreError], str], ...] = (
    (boto_errors.NoCredentialsError, StoreError, "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    (
        boto_errors.PartialCredentialsError,
        StoreError,
        "half the credentials: set both AWS_ACCESS_KEY_ID and its secret",
    ),
    (boto_errors.ParamValidationError, StoreError, "the store's name cannot be used"),
    (boto_errors.HTTPClientError, StoreUnavailable, "the connection broke"),
    (boto_errors.ConnectionError, StoreUnavailable, "no connection to the store"),
    (boto_errors.IncompleteReadError, StoreUnavailable, "the answer was cut short"),
    (ResponseParserError, StoreUnavailable, "the answer cannot be read"),
    (Urllib3Error, StoreUnavailable, "the connection broke"),
    (boto_errors.BotoCoreError, StoreError, "the client could not make the request"),
    (ValueError, StoreError, "the store's address cannot be used"),
)


@contextmanager
def translated(what: str, *, is_conditional: bool = False) -> Iterator[None]:
    _current.call = None  # the last request of this thread has nothing to do with this one
    try:
        yield
    except boto_errors.ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        raise error_of_answer(what, status, code, is_conditional=is_conditional) from error
    except tuple(row[0] for row in _BY_TYPE) as error:
        call = _current.call
        if call is not None and call.is_cut:
            message = f"{what}: broken off because it was not answered in whole within {call.limit_s:.0f} s ({error})"
            raise StoreUnavailable(message) from error
        kind, advice = next(row[1:] for row in _BY_TYPE if isinstance(error, row[0]))
        raise kind(f"{what}: {advice} ({error})") from error


# One of these is in each answer with a status of 2xx. Without it, something else has answered: a proxy on the way, a
# login page.
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
    """A hook of botocore's, after each call. Raises: StoreUnavailable where it was not a store that answered."""
    witnesses = _WITNESSES.get(model.name, ())
    if witnesses and 200 <= http_response.status_code < 300 and not any(name in parsed for name in witnesses):
        kind = http_response.headers.get("Content-Type", "no content type")
        raise StoreUnavailable(
            f"{model.name} was answered {http_response.status_code} by something that is not an S3 store: "
            f"no {witnesses[0]}, {kind}. Look for a proxy or a login page between this process and the store"
        )


def bare(etag: str) -> str:
    """Without the quotes."""
    return etag.removeprefix("W/").strip('"')


@dataclass(slots=True, eq=False)
class _Call:
    """One request. `until` is monotonic. `sock`: of an answer that is read, after its connection gave it away."""

    limit_s: float
    until: float
    connection: Any = None
    sock: Any = None
    is_cut: bool = False


class _Current(threading.local):
    call: _Call | None = None


_current = _Current()


class _Watch:
    """Breaks off what is over. One thread for the process, which sleeps while there is nothing to watch."""

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
    """False: there is no connection yet, for which its own timeout holds."""
    sock = call.sock or getattr(call.connection, "sock", None)
    if sock is None:
        return False
    call.is_cut = True
    with suppress(OSError):
        if isinstance(sock, socket.socket):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)  # of a TLS socket too: its own would change how it reads
        else:  # TLS within the TLS of a proxy
            sock.close()
    return True


class _Watched:
    """What is mixed into botocore's connections."""

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
    """urllib3 documents `ConnectionCls` as the place for a class of one's own. botocore's pools must have it.

    Raises: ImportError where they do not: then nothing here would have an effect.
    """
    kinds = ((awsrequest.AWSHTTPConnectionPool, _WatchedHTTP), (awsrequest.AWSHTTPSConnectionPool, _WatchedHTTPS))
    for pool, watched in kinds:
        if not issubclass(watched, pool.ConnectionCls):
            raise ImportError(f"{pool.__name__} of botocore makes connections of a kind that cannot be watched")
        pool.ConnectionCls = watched


_install()


def guard(client: Any) -> None:
    """Give every request of this client of boto3's a time limit, and check that a store answers it."""
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
