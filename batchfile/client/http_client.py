"""A batchfile service over HTTP: the one client, and with `engine/http/connection.py` the only file that knows aiohttp.

Async. What can be asked twice is asked again while the service is away, for `patience_s`; a create too, under the one
key that it was given. A service that has never answered is not waited for: its address may be wrong.
"""

import asyncio
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec

from batchfile.errors import (
    UNREADABLE,
    BatchfileError,
    InvalidFile,
    KeyReused,
    NotFound,
    ServiceUnavailable,
    SettingsError,
    TooLarge,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PATIENCE_S = 60.0
CONNECT_S = 10.0
ANSWER_S = 300.0  # a create is answered when its requests are stored and planned
SILENCE_S = 120.0  # results may land rarely; then the connection is made anew
BACKOFF_S = 0.5  # doubles, is cut by up to half at random, and ends at the next one
BACKOFF_S_MAX = 10.0
DETAIL_CHARS_MAX = 500
AWAY = {429, 502, 503, 504, 520, 521, 522, 523, 525, 526, 530}  # from 520 on: Cloudflare's of a server it can not reach
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
SAME_AGAIN = "run the same command again later"
LOOK_FIRST = "the batch may have been made: look with `batchfile ls` later, before the same command makes another"

T = TypeVar("T")
Pairs = list[tuple[str, str]]


class FileHead(msgspec.Struct, frozen=True):
    """What a HEAD tells of a file: its size in bytes, its etag without quotes."""

    size: int
    etag: str


class _Away(Exception):
    """The service did not answer, or said that it can not now. `wait_s`: what it asked for."""

    def __init__(self, message: str, wait_s: float = 0.0, *, is_busy: bool = False) -> None:
        super().__init__(f"{'is busy' if is_busy else 'does not answer'} ({message})")
        self.message = message
        self.wait_s = wait_s


class Client:
    """Used as an async context manager. Paths begin with a slash.

    Raises everywhere: ServiceUnavailable; SettingsError (a wrong URL or key); NotFound;
    InvalidFile, TooLarge, KeyReused (what was sent is refused); BatchfileError for any other answer.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        on_wait: Callable[[str], None] = lambda message: None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """`on_wait` is told once of each time that the service is away and waited for."""
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise SettingsError(f"{url} is no address of a service; give one such as http://localhost:8000")
        self.url = url.rstrip("/")
        self._has_key = bool(api_key)
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._on_wait = on_wait
        self._patience_s = patience_s
        self._is_direct = parts.hostname in LOOPBACK
        self._has_answered = False
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=ANSWER_S)
        try:
            self._session = aiohttp.ClientSession(
                headers=self._headers, timeout=timeout, trust_env=not self._is_direct, auto_decompress=True
            )
        except ValueError as error:
            raise SettingsError(f"the API key can not be sent: {error}") from None
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, kind: type[T], query: Pairs | None = None) -> T:
        """A JSON answer as a `kind`."""
        return await self._patiently(lambda: self._once("GET", path, kind, query=query))

    async def delete(self, path: str, kind: type[T], query: Pairs) -> T:
        """Where the answer to one attempt was lost, the next may find nothing any more: NotFound."""
        return await self._patiently(lambda: self._once("DELETE", path, kind, query=query), SAME_AGAIN)

    async def post(self, path: str, kind: type[T], *, idempotency_key: str | None = None) -> T:
        """Without a body. Asked again like a get: such posts of this service may be repeated, or have a key."""
        headers = {"idempotency-key": idempotency_key} if idempotency_key else {}
        advice = LOOK_FIRST if idempotency_key else SAME_AGAIN
        return await self._patiently(lambda: self._once("POST", path, kind, headers=headers), advice)

    async def send_lines(
        self, path: str, kind: type[T], lines: Callable[[], Iterator[bytes]], *, query: Pairs, idempotency_key: str
    ) -> T:
        """Post JSONL, packed on the way. `lines` is called for each attempt: they all make one batch."""
        headers = {
            "content-type": "application/x-ndjson",
            "content-encoding": "zstd",
            "idempotency-key": idempotency_key,
        }

        async def once() -> T:
            body = _Packed(lines())
            try:
                return await self._once("POST", path, kind, query=query, headers=headers, body=body.chunks())
            except _Away:
                if body.error is not None:
                    raise body.error from None
                raise

        return await self._patiently(once, LOOK_FIRST)

    async def head(self, path: str) -> FileHead:
        async def once() -> FileHead:
            async with self._answer("HEAD", path, headers={"accept-encoding": "identity"}) as answer:
                return FileHead(int(answer.headers.get("content-length", 0)), answer.headers.get("etag", "").strip('"'))

        return await self._patiently(once)

    async def file(self, path: str, head: FileHead, start: int) -> AsyncIterator[bytes]:
        """The bytes of a file from `start` on; a broken answer is continued."""
        at = start
        away_since: float | None = None
        while at < head.size:
            headers = {"accept-encoding": "identity", "range": f"bytes={at}-", "if-range": f'"{head.etag}"'}
            try:
                async with self._answer("GET", path, headers=headers) as answer:
                    if answer.status != 206 and at > 0:
                        raise BatchfileError(f"{self.url}{path} is another file by now; begin its download anew")
                    async for chunk in answer.content.iter_any():
                        at, away_since = at + len(chunk), None
                        yield chunk
            except _Away as away:
                away_since = await self._wait(away, away_since)

    async def lines(self, path: str, query: Pairs) -> AsyncIterator[list[bytes]]:
        """Lines as they land, until the answer ends; after a break from the start, without those that were given.

        Memory: a number for each line. A list is empty where nothing landed for a while.
        """
        given: set[int] = set()
        away_since: float | None = None
        while True:
            try:
                async with self._answer("GET", path, query=query, silence_s=SILENCE_S) as answer:
                    tail = b""
                    async for chunk in answer.content.iter_any():
                        away_since = None
                        rows = (tail + chunk).split(b"\n")
                        tail = rows.pop()
                        fresh = [row for row in rows if hash(row) not in given]
                        given.update(map(hash, fresh))
                        yield fresh
                    return
            except _Away as away:
                yield []
                away_since = await self._wait(away, away_since)

    async def _once(
        self,
        method: str,
        path: str,
        kind: type[T],
        *,
        query: Pairs | None = None,
        headers: Mapping[str, str] | None = None,
        body: AsyncIterator[bytes] | None = None,
    ) -> T:
        async with self._answer(method, path, query=query, headers=headers, body=body) as answer:
            data = await answer.read()
            try:
                return msgspec.json.decode(data, type=kind)
            except UNREADABLE:
                raise self._foreign(answer) from None

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        *,
        query: Pairs | None = None,
        headers: Mapping[str, str] | None = None,
        body: AsyncIterator[bytes] | None = None,
        silence_s: float = ANSWER_S,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A success. Raises: _Away, also where the answer breaks off while it is read; what the class says."""
        assert self._session is not None, "the client was not entered"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=silence_s)
        asking = self._session.request(
            method,
            self.url + path,
            params=query,
            headers=headers,
            data=body,
            timeout=timeout,
            allow_redirects=False,  # a redirected post would become a get
        )
        try:
            async with asking as answer:
                if answer.status >= 300:
                    raise await self._refusal(answer)
                self._has_answered = True
                yield answer
        except aiohttp.InvalidURL as error:
            raise SettingsError(f"{self.url} is no address of a service: {error}") from None
        except aiohttp.ClientConnectorCertificateError as error:
            raise SettingsError(f"{self.url} can not prove who it is: {error}") from None
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
            raise _Away(_reason(error)) from error
        except aiohttp.ClientError as error:
            raise SettingsError(f"{self.url} does not speak HTTP as a service does: {error}") from None
        except TimeoutError as error:
            raise _Away("it was silent for too long") from error

    async def _refusal(self, answer: aiohttp.ClientResponse) -> Exception:
        data = await answer.read()
        detail = ""
        with suppress(*UNREADABLE):
            found = msgspec.json.decode(data)
            detail = str(found.get("detail", ""))[:DETAIL_CHARS_MAX] if isinstance(found, dict) else ""
        self._has_answered = self._has_answered or bool(detail)
        if answer.status in AWAY:
            asked = answer.headers.get("retry-after", "")
            wait_s = float(asked) if asked.isdigit() else 0.0
            return _Away(detail or f"it answered {answer.status}", wait_s, is_busy=answer.status == 429)
        if answer.status == 403:
            return SettingsError(f"{self.url} refuses this: {detail or 'it answered 403'}")
        if answer.status == 401:
            return SettingsError(
                f"{self.url} does not know this API key; check BATCHFILE_API_KEY or --api-key"
                if self._has_key
                else f"{self.url} wants an API key: set BATCHFILE_API_KEY, or give --api-key"
            )
        if answer.status < 400:
            where = answer.headers.get("location", "nowhere")
            return SettingsError(f"{self.url} leads to {where}; give that as --url")
        return self._what_was_asked(answer, detail)

    def _what_was_asked(self, answer: aiohttp.ClientResponse, detail: str) -> BatchfileError:
        """What was wrong with it."""
        if answer.method == "HEAD":  # such answers have no detail
            return NotFound(f"{answer.url.path}: the service answered {answer.status}")
        if not detail:
            return self._foreign(answer)
        if answer.status == 404:
            return NotFound(detail)
        kinds: dict[int, type[BatchfileError]] = {400: InvalidFile, 413: TooLarge, 415: InvalidFile, 422: KeyReused}
        return kinds.get(answer.status, BatchfileError)(detail)

    def _foreign(self, answer: aiohttp.ClientResponse) -> SettingsError:
        what = f"{answer.status} with {answer.content_type}"
        return SettingsError(
            f"{answer.url.with_query(None)} answered {what}: that is no batchfile service; check --url"
        )

    async def _patiently(self, ask: Callable[[], Awaitable[T]], advice: str = SAME_AGAIN) -> T:
        away_since: float | None = None
        num = 0
        while True:
            try:
                return await ask()
            except _Away as away:
                num += 1
                away_since = await self._wait(away, away_since, num, advice)

    async def _wait(self, away: _Away, since: float | None, num: int = 1, advice: str = SAME_AGAIN) -> float:
        """Since when the service is away, after a pause. Raises: ServiceUnavailable where it has been for too long."""
        now = time.monotonic()
        is_first = since is None
        since = now if since is None else since
        pause_s = max(away.wait_s, min(BACKOFF_S * 2.0**num, BACKOFF_S_MAX) * random.uniform(0.5, 1.0))
        if not self._has_answered:
            raise ServiceUnavailable(
                f"{self.url} can not be reached ({away.message}); is it running, and is --url right?"
            )
        if now + pause_s - since > self._patience_s:
            raise ServiceUnavailable(f"{self.url} {away}; {advice}")
        if is_first:
            self._on_wait(f"{self.url} {away}")
        await asyncio.sleep(pause_s)
        return since


def _reason(error: aiohttp.ClientError) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        system = error.os_error
        number = system.errno or 0
        return os.strerror(number) if number > 0 else system.strerror or str(system)
    return str(error) or type(error).__name__


class _Packed:
    """A body, packed on the way. `error`: what its lines raised; to aiohttp that is a connection that broke."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self.error: Exception | None = None
        self._lines = lines

    async def chunks(self) -> AsyncIterator[bytes]:
        packer: Any = zstd.ZstdCompressor()
        try:
            while (chunk := await asyncio.to_thread(next, self._lines, None)) is not None:
                packed = await asyncio.to_thread(packer.compress, chunk)
                if packed:
                    yield packed
            yield packer.flush()
        except (BatchfileError, OSError) as error:
            self.error = error
            raise
