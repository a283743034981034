"""Fetches the bytes of media: over HTTP, from a bucket, from a file next to the input, or from a data URL."""

import http.client
import os
import stat
import threading
import time
from base64 import b64decode
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from batchfile.errors import InvalidRequest, ObjectMissing, SettingsError, StoreError, StoreUnavailable
from batchfile.media.rules import FETCH_S, MediaRules, in_words, scheme_of, shown
from batchfile.safe_http import Pinned, connect, target_of
from batchfile.store.base import Store
from batchfile.store.open import open_store

ATTEMPTS = 3  # at a server that does not answer, or answers 429 or 5xx
PAUSE_S = 0.25  # before the second attempt; doubles
REDIRECTS_MAX = 3
CHUNK_BYTES = 64 * 1024
UNAVAILABLE = "media_unavailable"  # the type of a failure that may not last
_PRIVATE = "{host} has a private address; the operator can allow these under media.{tenant}.allow_private"
_INSIDE = "redirects to {host}, which has a private address; name the URL that it leads to"
_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "batchfile"}


class _Again(Exception):
    """This attempt failed, and another one may not."""


def from_data_url(source: str, rules: MediaRules) -> bytes:
    """Raises: InvalidRequest."""
    try:
        data = b64decode(source.partition(",")[2], validate=True)
    except ValueError as error:
        raise InvalidRequest(f"is not valid base64: {error}") from error
    _check_size(len(data), rules)
    return data


def _check_size(size: int, rules: MediaRules) -> None:
    if size > rules.limits.object_bytes:
        raise rules.above("is too large", in_words(rules.limits.object_bytes), "object_bytes_max")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fetch:
    """`need`: called with the bytes that the object has so far, before they are kept; it may raise."""

    rules: MediaRules
    need: Callable[[int], None]
    until: float

    def check(self, size: int) -> None:
        _check_size(size, self.rules)
        self.need(size)


class Sources:
    """Reads what a request refers to. Keeps a connection for each bucket. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._buckets: dict[str, Store] = {}

    def fetch(self, source: str, rules: MediaRules, need: Callable[[int], None] = lambda size: None) -> bytes:
        """The object at a URL or path that `rules` allow, in about FETCH_S seconds.

        `need` is called with its size as far as it is known, before more is kept; what it raises ends the fetch.
        Raises: InvalidRequest without the name of the source.
        """
        fetch = _Fetch(rules=rules, need=need, until=time.monotonic() + FETCH_S)
        scheme = scheme_of(source)
        if scheme == "s3":
            return self._from_bucket(source, fetch)
        return _from_server(source, fetch) if scheme else _from_file(source, fetch)

    def _from_bucket(self, source: str, fetch: _Fetch) -> bytes:
        rules, found, size = fetch.rules, list[bytes](), 0
        parts = urlsplit(source)
        own, query = rules.own_bucket, parts.query
        if own is not None and own.name == parts.netloc:
            query = own.query
        try:
            store = self._bucket(f"s3://{parts.netloc}" + (f"?{query}" if query else ""))
            for chunk in store.stream(unquote(parts.path).lstrip("/"), 0, rules.limits.object_bytes + 1):
                size += len(chunk)
                fetch.check(size)
                found.append(chunk)
                if time.monotonic() >= fetch.until:
                    raise InvalidRequest(f"cannot be read: {_late()}", UNAVAILABLE)
        except ObjectMissing:
            raise InvalidRequest("there is no such object") from None
        except SettingsError as error:
            raise InvalidRequest(f"is not the URL of an object: {error}") from error
        except StoreUnavailable as error:
            raise InvalidRequest(f"cannot be read: {error}", UNAVAILABLE) from error
        except StoreError as error:
            raise InvalidRequest(f"cannot be read: {' '.join(str(error).split())}") from error
        return b"".join(found)

    def _bucket(self, url: str) -> Store:
        with self._lock:
            if url not in self._buckets:
                self._buckets[url] = open_store(url, prove=False)
            return self._buckets[url]


def _from_file(source: str, fetch: _Fetch) -> bytes:
    path = fetch.rules.file(source)
    try:
        # Not blocking: opening a pipe would wait for its writer.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise InvalidRequest("is not a file")
            fetch.check(found.st_size)
            return file.read(found.st_size)
    except FileNotFoundError:
        raise InvalidRequest(f"there is no such file in {fetch.rules.folder}") from None
    except OSError as error:
        raise InvalidRequest(f"cannot be read: {error.strerror}") from error


def _from_server(source: str, fetch: _Fetch) -> bytes:
    why = ""
    for attempt in range(ATTEMPTS):
        try:
            return _follow(source, fetch)
        except _Again as error:
            why = str(error)
        pause_s = PAUSE_S * 2**attempt
        if time.monotonic() + pause_s >= fetch.until:
            break
        time.sleep(pause_s)
    raise InvalidRequest(f"cannot be fetched: {why}", UNAVAILABLE)


def _follow(url: str, fetch: _Fetch) -> bytes:
    """Only the first server, and others on its address and port, may be private: a redirect leads to no other one."""
    first = urlsplit(url)
    for _ in range(REDIRECTS_MAX + 1):
        parts = urlsplit(url)
        found = _get(parts, fetch, is_first=parts.netloc == first.netloc)
        if isinstance(found, bytes):
            return found
        url = _redirected(url, found)
        try:
            fetch.rules.check(url)
        except InvalidRequest as error:
            raise InvalidRequest(f'redirects to "{shown(url)}": {error}', error.type) from None
    raise InvalidRequest(f"redirects more than {REDIRECTS_MAX} times")


def _redirected(url: str, location: str) -> str:
    try:
        found = urljoin(url, location)
        is_http = urlsplit(found).scheme in {"http", "https"}
    except ValueError:
        found, is_http = location, False
    if not location:
        raise InvalidRequest("cannot be fetched: the server redirects without saying where")
    if not is_http:
        raise InvalidRequest(f'redirects to "{shown(found)}", which is not an http address')
    return found


def _late() -> str:
    return f"took longer than {FETCH_S:g} s"


def _connection(parts: SplitResult, allow_private: bool, until: float) -> Pinned | None:
    """In a thread of its own: a look-up of a name has no time limit, and cannot be ended."""
    found = Future[Pinned | None]()

    def look_up() -> None:
        try:
            found.set_result(connect(parts, allow_private=allow_private))
        except BaseException as error:  # noqa: BLE001 raised again where the result is read
            found.set_exception(error)

    threading.Thread(target=look_up, name="media-look-up", daemon=True).start()
    return found.result(max(0.01, until - time.monotonic()))


def _get(parts: SplitResult, fetch: _Fetch, *, is_first: bool) -> bytes | str:
    """The object, or where the server says that it is. Raises: InvalidRequest, _Again."""
    rules, until = fetch.rules, fetch.until
    try:
        connection = _connection(parts, is_first and (rules.allow_private or rules.allow is None), until)
        if connection is None:
            raise InvalidRequest((_PRIVATE if is_first else _INSIDE).format(host=parts.hostname, tenant=rules.tenant))
        given_up = threading.Timer(max(0.01, until - time.monotonic()), connection.cut)
        given_up.daemon = True
        given_up.start()
        try:
            connection.request("GET", target_of(parts), headers=_HEADERS)
            with connection.getresponse() as response:
                found = _read(response, fetch)
            if time.monotonic() >= until:  # it may have been cut
                raise _Again(_late())
            return found
        finally:
            given_up.cancel()
            with suppress(OSError):
                connection.close()
    except (http.client.InvalidURL, UnicodeError) as error:
        raise InvalidRequest(f"is not a valid URL: {error}") from error
    except (OSError, http.client.HTTPException, ValueError, _Again) as error:
        raise _Again(_late() if time.monotonic() >= until else _words(error)) from error


def _words(error: Exception) -> str:
    """Not what the server sent."""
    if isinstance(error, http.client.IncompleteRead):
        return "the response ended early"
    if isinstance(error, http.client.HTTPException) and not isinstance(error, OSError):
        return "the response is not valid HTTP"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _read(response: http.client.HTTPResponse, fetch: _Fetch) -> bytes | str:
    status = response.status
    if status in {301, 302, 303, 307, 308}:
        return response.headers.get("Location", "")
    if status == 429 or status >= 500:
        raise _Again(f"the server answered {status}")
    if status != 200:
        raise InvalidRequest(f"cannot be fetched: the server answered {status}")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise InvalidRequest("cannot be fetched: the server sent it in a content encoding that was not asked for")
    chunks, size = list[bytes](), 0
    fetch.check(response.length or 0)
    while chunk := response.read(CHUNK_BYTES):
        size += len(chunk)
        fetch.check(size)
        chunks.append(chunk)
    if response.length:
        raise _Again(f"the response ended {response.length:,} bytes early")
    return b"".join(chunks)
