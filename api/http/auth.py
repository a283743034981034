"""The auth middleware: gives every request an id and a caller, enforces limits, and logs the response.

Plain ASGI around the application, so that it also covers unknown routes and streamed responses. Keys are compared as
SHA-256 digests in constant time; a key's permissions depend only on its tenant. When the server stops, a response that
would never end is cut off in a way that its client notices.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import json
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import structlog
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from batchfile import tracing
from batchfile.lines.failures import reason_of
from batchfile.settings import Settings
from batchfile.settings_tables import ApiKey
from batchfile.types import TENANT

from .errors import REASON, Refusal
from .negotiation import NegotiatedFormat, needs_other_format, negotiate, problem

log = structlog.get_logger()

OPEN_PATHS = re.compile(r"/(healthz|ready|version|metrics|openapi\.json|docs(/.*)?|dashboard/[a-z]+\.(js|css|svg))?")
REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
RETRY_AFTER_S = 1
LOST_RETRY_S = 10
LEFT = 499  # the client disconnected before it had sent the whole request; nginx uses the same code
ENDLESS = "endless"  # a route sets it in the scope of its request
# Unless a route overrides them, as the pages do: browsers may neither run nor embed any other response.
DEFAULT_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
# Reject duplicates: a proxy may use the first value and this service the last.
SAID_ONCE = frozenset({b"host", b"authorization", b"x-api-key", b"transfer-encoding", b"idempotency-key"})
# Names that public DNS never resolves, so that no foreign web page can use them.
PRIVATE_ENDINGS = (".localhost", ".internal", ".local")

Headers = dict[bytes, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who sends a request. `key` distinguishes the keys of a tenant, and `name` is its name; `api_format`: the key's
    configured one.
    """

    tenant: str
    key: str
    api_format: Literal["stage", "anthropic"] | None = None
    name: str | None = None


PROBE = Caller(tenant="", key="")


class AuthMiddleware:
    """Wraps an ASGI application. `in_flight` counts the requests of each key in this process.

    `store_lost` is set while the store does not answer. `stopping`: set it when shutdown begins.
    """

    def __init__(
        self, app: ASGIApp, settings: Settings, store_lost: asyncio.Event, count_answer: Callable[[str, int], None]
    ) -> None:
        self._app = app
        self._store_lost = store_lost
        self.count_answer = count_answer
        self._keys = settings.api_keys
        # Otherwise it is exposed on purpose, under names that are not known here.
        self._is_local = not (settings.allow_anonymous or settings.api.public_url or settings.api.trust_forwarded)
        self._in_flight_max = settings.api.in_flight_max
        self.in_flight: Counter[str] = Counter()
        self.stopping = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        await _RequestContext(scope, send).run(self, receive)

    async def admit(self, context: "_RequestContext", receive: Receive) -> None:
        """Find the caller, enforce the limits, and pass the request on."""
        # Probes have their own limit: a busy key must not make the service look dead.
        caller = PROBE if OPEN_PATHS.fullmatch(context.path) else self._caller(context.headers)
        context.negotiated = negotiate(
            context.scope["method"],  # type: ignore[typeddict-item]
            context.path,
            context.headers,
            of_key=None if caller is None else caller.api_format,
            request_id=context.id,
        )
        try:
            self._check(context, is_probe=caller is PROBE)
        except Refusal as refusal:
            await context.refuse(refusal.status, refusal.detail, {"Connection": "close"})
            return
        if caller is None:
            detail = "The API key is missing or invalid; send `Authorization: Bearer KEY` or `x-api-key: KEY`."
            await context.refuse(401, detail, {"WWW-Authenticate": "Bearer"})
            return
        context.caller = caller
        if needs_other_format(context.negotiated, context.path):
            await context.refuse(
                404,
                "Files are available only in OpenAI's API format; leave out the headers of Anthropic clients.",
                {"Connection": "close"},
            )
            return
        if self.in_flight[caller.key] >= self._in_flight_max:
            detail = f"This key has reached its limit of {self._in_flight_max} concurrent requests; retry shortly."
            await context.refuse(429, detail, {"Retry-After": str(RETRY_AFTER_S)})
            return
        context.scope["caller"] = caller  # type: ignore[typeddict-unknown-key]
        context.scope["negotiated"] = context.negotiated  # type: ignore[typeddict-unknown-key]
        self.in_flight[caller.key] += 1
        try:
            if caller is PROBE:
                await self._app(context.scope, receive, context.send)
            else:
                await self._pass(context, receive)
        finally:
            self.in_flight[caller.key] -= 1
            if not self.in_flight[caller.key]:
                del self.in_flight[caller.key]

    def _check(self, context: "_RequestContext", *, is_probe: bool) -> None:
        """Raises: Refusal."""
        headers = context.scope["headers"]
        check_reading(headers, context.scope["http_version"])
        if not self._keys and not is_probe:
            check_browser(headers, is_local=self._is_local)

    async def _pass(self, context: "_RequestContext", receive: Receive) -> None:
        """Run the application until the store is lost or the server stops. A response that has begun is finished,
        unless it would never end.
        """
        answering = asyncio.ensure_future(self._app(context.scope, receive, context.send))
        events = {asyncio.ensure_future(event.wait()) for event in (self._store_lost, self.stopping)}
        waiting = set(events)
        try:
            while not answering.done() and not self._is_given_up(context):
                come, _ = await asyncio.wait({answering, *waiting}, return_when=asyncio.FIRST_COMPLETED)
                waiting -= come
            if answering.done():
                await answering
                return
            answering.cancel()
            with suppress(asyncio.CancelledError):
                await answering
            if not context.has_begun:
                what = "The store is unavailable" if self._store_lost.is_set() else "This server is stopping"
                await context.refuse(503, f"{what}; retry the request.", {"Retry-After": str(LOST_RETRY_S)})
        finally:
            for task in (answering, *events):
                task.cancel()

    def _is_given_up(self, context: "_RequestContext") -> bool:
        if self.stopping.is_set() and context.is_endless:
            return True
        return self._store_lost.is_set() and not context.has_begun

    def _caller(self, headers: Headers) -> Caller | None:
        if not self._keys:
            return Caller(tenant=TENANT, key=TENANT)
        owners = [_owner(self._keys, key) for key in _keys_in(headers)]
        return next((owner for owner in owners if owner is not None), None)


def _keys_in(headers: Headers) -> list[bytes]:
    """All keys of a request: clients of two services may send both keys, and the first valid one counts."""
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    given = (token.strip() if scheme.lower() == b"bearer" else b"", headers.get(b"x-api-key", b""))
    return [key for key in given if key]


def _owner(keys: tuple[ApiKey, ...], given: bytes) -> Caller | None:
    """Compares every key, so that the time taken reveals nothing."""
    digest = hashlib.sha256(given).hexdigest()
    found = None
    for key in keys:
        if hmac.compare_digest(key.sha256, digest):
            found = Caller(tenant=key.tenant, key=digest, api_format=key.dialect, name=key.name)
    return found


class _RequestContext:
    """One request: its id, its response, and how long it took."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope = scope
        self.path: str = scope["path"]
        self.headers: Headers = {name.lower(): value for name, value in scope["headers"]}
        self._send = send
        self._is_head = scope["method"] == "HEAD"  # type: ignore[typeddict-item]
        self._status = 0
        self._bytes = 0
        self._has_left = False  # the client disconnected before it had sent the whole request
        self.caller = PROBE  # until it is known
        given = self.headers.get(b"x-request-id", b"").decode("latin-1")
        self.id = given if REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        self.negotiated = NegotiatedFormat(api_format="native", request_id=self.id)

    @property
    def is_endless(self) -> bool:
        """Has the route marked its response as open-ended?"""
        return bool(self.scope.get(ENDLESS))

    @property
    def has_begun(self) -> bool:
        """Has the response started?"""
        return self._status != 0

    async def run(self, auth_middleware: AuthMiddleware, receive: Receive) -> None:
        started_at = time.monotonic()
        structlog.contextvars.bind_contextvars(request_id=self.id)
        try:
            with tracing.continued(self.headers.get(b"traceparent", b"").decode("latin-1")):
                await auth_middleware.admit(self, self._watched(receive))
        finally:
            structlog.contextvars.clear_contextvars()
            auth_middleware.count_answer(self.scope["method"], self._status)  # type: ignore[typeddict-item]
            caller, reason = self.caller, self.scope.get(REASON)
            log.info(
                "request.answered",
                request_id=self.id,
                method=self.scope["method"],  # type: ignore[typeddict-item]
                path=self.path[:200],
                status=self._status or None,
                bytes=self._bytes,
                tenant=caller.tenant or None,
                key=None if caller.key == caller.tenant else caller.key[:8],  # of its SHA-256
                key_name=caller.name,
                reason=reason and reason_of("", str(reason)),  # without quoted values, which may be of a prompt
                ms=round((time.monotonic() - started_at) * 1000, 1),
            )

    def _watched(self, receive: Receive) -> Receive:
        async def watched() -> Any:
            message = await receive()
            self._has_left |= message["type"] == "http.disconnect"
            return message

        return watched

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = LEFT if self._has_left else message["status"]  # nobody receives this response
            name = self.id.encode()
            headers = [*message.get("headers", []), (b"x-request-id", name), (b"request-id", name)]
            if self._is_head:  # of the route's empty body, not of the one that GET would have
                headers = [(key, value) for key, value in headers if (key.lower(), value) != (b"content-length", b"0")]
            given = {key.lower() for key, _ in headers}
            message["headers"] = headers + [(key, value) for key, value in DEFAULT_HEADERS if key not in given]
        elif message["type"] == "http.response.body":
            if self._is_head:
                message["body"] = b""
            self._bytes += len(message.get("body", b""))
        await self._send(message)

    async def refuse(self, status: int, detail: str, headers: dict[str, str]) -> None:
        self.scope[REASON] = detail  # type: ignore[literal-required]
        body = json.dumps(problem(self.negotiated, status, detail)).encode()
        fields: list[Any] = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        fields += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await self.send({"type": "http.response.start", "status": status, "headers": fields})
        await self.send({"type": "http.response.body", "body": body, "more_body": False})


def check_reading(headers: Iterable[tuple[bytes, bytes]], http_version: str) -> None:
    """Reject a request that a proxy and this service could read differently. Names are in lower case.

    Raises: Refusal (400, 501).
    """
    names = [name for name, _ in headers]
    for name in SAID_ONCE:
        if names.count(name) > 1:
            raise Refusal(400, f"{name.decode()}: is repeated; send it once")
    if not dict(headers).get(b"idempotency-key", b"-").strip():
        raise Refusal(400, "Idempotency-Key: is empty; send a UUID, or leave the header out")
    if http_version == "1.1" and b"host" not in names:
        raise Refusal(400, "host: is missing; HTTP/1.1 requires it")
    coding = dict(headers).get(b"transfer-encoding", b"chunked").strip().lower()
    if coding != b"chunked":
        raise Refusal(501, "Transfer-Encoding: only chunked is supported; compress the body with Content-Encoding")


def check_browser(headers: Iterable[tuple[bytes, bytes]], *, is_local: bool) -> None:
    """Reject cross-origin requests that a web page makes a browser send to a service without keys.

    `is_local`: the service is meant for this machine only. A browser sends the origin of the page, or at least that it
    is another one, and the host name: with DNS rebinding that is a public name. Following a link here is allowed.
    Raises: Refusal 403.
    """
    known = dict(headers)
    host = known.get(b"host", b"").decode("latin-1").lower()
    origin = known.get(b"origin", b"").decode("latin-1").lower()
    is_embedded = known.get(b"sec-fetch-site") == b"cross-site" and known.get(b"sec-fetch-mode") != b"navigate"
    if is_embedded or (origin and origin.partition("://")[2] != host):
        raise Refusal(
            403,
            "Cross-origin browser requests are rejected; call this service from a server or the command line.",
        )
    if is_local and _is_public_name(host):
        raise Refusal(
            403,
            "Without API keys this service accepts requests only under a local host name. Use localhost, create a key "
            "with `batchfile keys new TENANT`, or set BATCHFILE_ALLOW_ANONYMOUS=1.",
        )


def _is_public_name(host: str) -> bool:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    name = name.strip("[]").rstrip(".")
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." in name and not name.endswith(PRIVATE_ENDINGS)
    return False
