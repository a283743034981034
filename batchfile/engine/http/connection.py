"""Sends requests to an OpenAI-compatible endpoint. The only module of the engine that uses aiohttp.

All exceptions of aiohttp become a `NoAnswer` here. Retries and the meaning of responses are elsewhere.
"""

import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal, Self

import aiohttp

from batchfile.engine.http.wire import OUTSIDE_V1, Said, unwrapped

CONNECT_TIMEOUT_S = 10.0
RESPONSE_BYTES_MAX = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """Why a response is missing. `unreachable`, `untrusted`: the request was not sent. `late`, `broken`: it may have
    been.

    `reason`: a few words for people.
    """

    kind: Literal["unreachable", "untrusted", "late", "broken"]
    reason: str


Ask = Callable[[str, str, bytes | None], Awaitable[Said | NoAnswer]]


class Connection:
    """An async context manager. `root` ends in /v1; `key`: may be empty; `timeout_s`: for one request.

    `concurrency`: requests at once. `is_kept`: whether a connection is reused for the next request.
    """

    def __init__(self, root: str, key: str, *, concurrency: int, timeout_s: float, is_kept: bool = True) -> None:
        self._root = root
        self._key = key
        self._concurrency = concurrency
        self._timeout_s = timeout_s
        self._is_kept = is_kept

    async def __aenter__(self) -> Self:
        authorization = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._concurrency, force_close=not self._is_kept),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=CONNECT_TIMEOUT_S),
            headers={"Content-Type": "application/json"} | authorization,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def ask(self, method: str, path: str, body: bytes | None = None) -> Said | NoAnswer:
        """The response, without following redirects, cut a little after RESPONSE_BYTES_MAX."""
        try:
            return await self._ask(method, path, body)
        except aiohttp.ClientConnectorCertificateError as error:
            return NoAnswer("untrusted", f"its certificate is not trusted: {error.certificate_error}")
        except aiohttp.ClientConnectorError as error:
            return NoAnswer("unreachable", f"no connection: {_words(error)}")
        except aiohttp.ConnectionTimeoutError:  # lost packets: the machine is down, or a firewall drops them
            return NoAnswer("unreachable", f"no connection within {CONNECT_TIMEOUT_S:g} s")
        except TimeoutError:
            return NoAnswer("late", f"within {self._timeout_s:g} s")
        except aiohttp.ClientError as error:
            return NoAnswer("broken", str(error) or type(error).__name__)

    async def _ask(self, method: str, path: str, body: bytes | None) -> Said:
        root = self._root.removesuffix("/v1") if path in OUTSIDE_V1 else self._root
        async with self._session.request(method, root + path, data=body, allow_redirects=False) as response:
            data = b""
            while len(data) <= RESPONSE_BYTES_MAX and (more := await response.content.readany()):
                data += more
            said = unwrapped(Said(response.status, response.headers, data))
            if self._key and said.status != 200:  # some endpoints repeat the key, and callers see their messages
                return replace(said, data=said.data.replace(self._key.encode(), b"***"))
            return said


def _words(error: aiohttp.ClientConnectorError) -> str:
    """The system's error message if it has one, such as `Connection refused`."""
    cause = error.os_error
    if isinstance(error, aiohttp.ClientConnectorDNSError) or isinstance(cause, socket.gaierror):
        return f"the host name {error.host!r} cannot be resolved"
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return f"TLS failed: {cause}"
    return os.strerror(cause.errno) if cause.errno else str(error)
