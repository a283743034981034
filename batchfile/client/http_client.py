"""The async HTTP client of a batchfile service. With `engine/http/connection.py`, the only file that uses aiohttp.

Requests that are safe to repeat are retried for `patience_s` while the service is unavailable, and so are creates, with
their idempotency key. It does not wait for a service that has never answered: the address may be wrong.
"""

import asyncio
import os
import random
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

PATIENCE_S = 60.0
CONNECT_S = 10.0
ANSWER_S = 300.0  # a create is answered once its requests are stored and planned
SILENCE_S = 120.0  # new results may be rare; after this time it reconnects
BACKOFF_S = 0.5  # doubles up to BACKOFF_S_MAX, and is reduced by up to half at random
BACKOFF_S_MAX = 10.0
DETAIL_CHARS_MAX = 500
AWAY = {429, 502, 503, 504, 520, 521, 522, 523, 525, 526, 530}  # from 520: Cloudflare cannot reach the server
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
SAME_AGAIN = "run the same command again later"
LOOK_FIRST = "the batch may have been created: check with `batchfile ls` before you run the same command again"

T = TypeVar("T")
Pairs = list[tuple[str, str]]


class FileHead(msgspec.Struct, frozen=True):
    """A file's size in bytes and its etag without quotes, from a HEAD request."""

    size: int
    etag: str


class _Away(Exception):
    """The service did not answer (`status` None), or is temporarily unavailable. `wait_s`: its Retry-After."""

    def __init__(self, message: str, wait_s: float = 0.0, *, status: int | None = None) -> None:
        what = "does not answer" if status is None else "is busy" if status == 429 else "is unavailable"
        super().__init__(f"{what} ({message})")
        self.message = message
        self.wait_s = wait_s


class Client:
    """Used as an async context manager. Paths begin with a slash.

    All methods raise ServiceUnavailable; SettingsError (a wrong URL or key); NotFound; InvalidFile, TooLarge,
    KeyReused (the service rejects the request); BatchfileError for any other answer.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        on_wait: Callable[[str], None] = lambda message: None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """`on_wait` is called once each time the client starts to wait for the service."""
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise SettingsError(f"{url} is not a valid service URL; use one such as http://localhost:8000")
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
        except ValueError:
            raise SettingsError(
                "the API key cannot be sent in an HTTP header; check it for line breaks and special characters"
            ) from None
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, kind: type[T], query: Pairs | None = None) -> T:
        """A JSON answer, decoded as `kind`."""
        return await self._patiently(lambda: self._once("GET", path, kind, query=query))

    async def delete(self, path: str, kind: type[T], query: Pairs) -> T:
        """If the answer to an attempt was lost, the next attempt may raise NotFound."""
        return await self._patiently(lambda: self._once("DELETE", path, kind, query=query), SAME_AGAIN)

    async def post(self, path: str, kind: type[T], *, idempotency_key: str | None = None) -> T:
        """A POST without a body. Retried like a GET: these requests are idempotent, or have a key."""
        headers = {"idempotency-key": idempotency_key} if idempotency_key else {}
        advice = LOOK_FIRST if idempotency_key else SAME_AGAIN
        return await self._patiently(lambda: self._once("POST", path, kind, headers=headers), advice)

    async def send_lines(
        self, path: str, kind: type[T], lines: Callable[[], Iterator[bytes]], *, query: Pairs, idempotency_key: str
    ) -> T:
        """Post JSONL, compressed while it is sent. `lines` is called for each attempt; together they make one batch."""
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
        """The bytes of a file from `start` on; resumes after a broken connection."""
        at = start
        away_since: float | None = None
        while at < head.size:
            headers = {"accept-encoding": "identity", "range": f"bytes={at}-", "if-range": f'"{head.etag}"'}
            try:
                async with self._answer("GET", path, headers=headers) as answer:
                    if answer.status != 206 and at > 0:
                        raise BatchfileError(f"{self.url}{path} has changed during the download; start it again")
                    async for chunk in answer.content.iter_any():
                        at, away_since = at + len(chunk), None
                        yield chunk
            except _Away as away:
                away_since = await self._wait(away, away_since)

    async def lines(self, path: str, query: Pairs) -> AsyncIterator[list[bytes]]:
        """Lines as they arrive, until the answer ends. After a break it starts over and skips the known ones.

        Memory: a number for each line. A list is empty if nothing arrived for a while.
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
        """A successful answer. Raises: _Away, also if the connection breaks while it is read; else as the class."""
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
        except aiohttp.InvalidURL:
            raise SettingsError(
                f"{self.url} is not a valid service URL; use one such as http://localhost:8000"
            ) from None
        except aiohttp.ClientConnectorCertificateError as error:
            why = getattr(error.certificate_error, "verify_message", "") or "verification failed"
            raise SettingsError(f"{self.url}: its TLS certificate is not valid ({why})") from None
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
            raise _Away(_reason(error)) from error
        except aiohttp.ClientError as error:
            raise SettingsError(f"{self.url} sent an invalid HTTP response: {error}") from None
        except TimeoutError as error:
            raise _Away("timeout") from error

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
            return _Away(detail or f"it answered {answer.status}", wait_s, status=answer.status)
        if answer.status == 403:
            return SettingsError(f"{self.url} does not allow this: {detail or 'it answered 403'}")
        if answer.status == 401:
            return SettingsError(
                f"{self.url} does not accept this API key; check BATCHFILE_API_KEY or the key that was given"
                if self._has_key
                else f"{self.url} requires an API key; set BATCHFILE_API_KEY"
            )
        if answer.status < 400:
            where = answer.headers.get("location", "an unknown URL")
            return SettingsError(f"{self.url} redirects to {where}; use that address")
        return self._what_was_asked(answer, detail)

    def _what_was_asked(self, answer: aiohttp.ClientResponse, detail: str) -> BatchfileError:
        """The error for a rejected request."""
        if answer.method == "HEAD":  # its answers have no body, and so no detail
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
            f"{answer.url.with_query(None)} answered {what}, so it is not a batchfile service; check the address"
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
        """Pause; returns since when the service is unavailable. Raises: ServiceUnavailable after `patience_s`."""
        now = time.monotonic()
        is_first = since is None
        since = now if since is None else since
        pause_s = max(away.wait_s, min(BACKOFF_S * 2.0**num, BACKOFF_S_MAX) * random.uniform(0.5, 1.0))
        if not self._has_answered:
            raise ServiceUnavailable(
                f"{self.url} cannot be reached ({away.message}); check that it is running and that this is its address"
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
    return str(error) or "connection error"


class _Packed:
    """A compressed request body. `error`: what its lines raised; aiohttp reports that as a broken connection."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self.error: Exception | None = None
        self._lines = lines

    async def chunks(self) -> AsyncIterator[bytes]:
        from batchfile.lines.file_formats import zstd  # other commands need no lines

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
