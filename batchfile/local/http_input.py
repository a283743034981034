"""Downloads a file over HTTP, for an input that is an address. With the two HTTP clients, the only user of aiohttp."""

import asyncio
import os
import queue
import threading
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp

from batchfile.errors import InvalidFile

CONNECT_S = 10.0
SILENCE_S = 120.0  # a server that sends nothing for this long is given up
CHUNKS_MAX = 16  # downloaded ahead, of up to about 256 KiB each
REDIRECTS_MAX = 10
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}  # reached without a proxy
_HEADERS = {"accept-encoding": "identity"}  # the file as it is, with its length
_NO_ACCESS = "use an address with credentials, or a signed one"


@dataclass(frozen=True, slots=True)
class Head:
    """`size` in bytes; None: unknown. `version` changes with the file; empty where the server does not tell."""

    size: int | None
    version: str


class InputDownload:
    """A response whose body is read by a thread with its own event loop: callers may have a running one.

    `name` is for messages. Raises: InvalidFile, also from `chunks`, which ends only where the file ends.
    """

    def __init__(self, url: str, name: str) -> None:
        self._url, self._name = url, name
        self._items: queue.Queue[Head | bytes | InvalidFile | None] = queue.Queue(CHUNKS_MAX)
        self._is_closed = False
        threading.Thread(target=self._work, name="batchfile-download", daemon=True).start()
        first = self._items.get()
        if isinstance(first, InvalidFile):
            raise first
        assert isinstance(first, Head)
        self.head = first

    def chunks(self) -> Generator[bytes, None, None]:
        try:
            while (item := self._items.get()) is not None:
                if isinstance(item, InvalidFile):
                    raise item
                assert isinstance(item, bytes)
                yield item
        finally:
            self.close()

    def close(self) -> None:
        self._is_closed = True
        with suppress(queue.Empty):
            while True:
                self._items.get_nowait()  # the thread may wait for room

    def _work(self) -> None:
        num_bytes = 0

        async def fetch() -> None:
            nonlocal num_bytes
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
            is_direct = urlsplit(self._url).hostname in _LOOPBACK
            async with aiohttp.ClientSession(
                timeout=timeout, auto_decompress=False, trust_env=not is_direct
            ) as session:
                async with asyncio.timeout(SILENCE_S):
                    answer = await session.get(self._url, headers=_HEADERS, max_redirects=REDIRECTS_MAX)
                async with answer:
                    self._items.put(_head_of(self._name, answer))
                    while not self._is_closed:
                        async with asyncio.timeout(SILENCE_S):
                            data = await answer.content.readany()
                        if not data:
                            return
                        num_bytes += len(data)
                        self._items.put(data)

        try:
            asyncio.run(fetch())
            self._items.put(None)
        except InvalidFile as error:
            self._items.put(error)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            reason = _reason(error)
            where = f"after {num_bytes:,} bytes, before the end of the file" if num_bytes else "before the first byte"
            self._items.put(InvalidFile(f"{self._name}: the download failed {where}: {reason}; run the command again"))


def _head_of(name: str, answer: aiohttp.ClientResponse) -> Head:
    """Raises: InvalidFile for a response without the file, or whose end cannot be told from a broken connection."""
    status, headers = answer.status, answer.headers
    schemes = [hop.url.scheme for hop in (*answer.history, answer)]
    if "https" in schemes[:-1] and "http" in schemes[schemes.index("https") :]:
        raise InvalidFile(f"{name}: redirects from https to http, which is not encrypted; use the address it leads to")
    if status in {404, 410}:
        raise InvalidFile(f"{name}: there is no such file (HTTP {status}); check the address")
    if status in {401, 403, 407}:
        raise InvalidFile(f"{name}: access is denied (HTTP {status}); {_NO_ACCESS}")
    if status != 200:
        raise InvalidFile(f"{name}: cannot be downloaded: the server answered HTTP {status}; try again later")
    is_chunked = "chunked" in headers.get("transfer-encoding", "").lower()
    if answer.content_length is None and not is_chunked:
        raise InvalidFile(
            f"{name}: the server does not say where the file ends, so a broken download would look complete; "
            "download it and use the file"
        )
    validators = [headers.get("etag", ""), headers.get("last-modified", "")]
    version = f"{answer.content_length} {' '.join(validators)}" if any(validators) else ""
    return Head(size=answer.content_length, version=version)


def _reason(error: Exception) -> str:
    """A few words without the address, which may contain credentials."""
    match error:
        case aiohttp.TooManyRedirects():
            reason = f"more than {REDIRECTS_MAX} redirects"
        case aiohttp.ClientConnectorCertificateError():
            reason = f"the certificate is not trusted: {error.certificate_error}. Name its authority with SSL_CERT_FILE"
        case aiohttp.ClientConnectorSSLError():
            reason = "the server does not speak TLS as https needs it; check the address and its port"
        case aiohttp.ClientConnectorDNSError():
            reason = f"the host name {error.host!r} cannot be resolved"
        case aiohttp.ClientConnectorError() if error.os_error.errno and error.os_error.errno > 0:
            reason = os.strerror(error.os_error.errno)
        case TimeoutError():
            reason = "the server does not answer"
        case aiohttp.InvalidURL() | ValueError():
            reason = "the address is not valid"
        case _:
            reason = "the connection was closed"
    return reason
