"""Gives JSON responses an ETag, so that a page that asks again and again gets a 304 while nothing has changed."""

import hashlib
from typing import Any

from litestar.datastructures import Headers
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from .openapi import plain
from .responses import names_any


def etagged(app: ASGIApp) -> ASGIApp:
    """Litestar middleware of a route whose responses fit in memory. A 304 saves the transfer, not the reads."""

    async def tagged(scope: Scope, receive: Receive, send: Send) -> None:
        asked = Headers.from_scope(scope).get("if-none-match", "")
        start: Message | None = None
        body = b""

        async def held(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start" and message["status"] == 200:
                start = message
            elif start is None or message["type"] != "http.response.body":
                await send(message)
            else:
                body += message["body"]
                if not message.get("more_body"):
                    await _send(start, body, asked, send)

        await app(scope, receive, held)

    return tagged


async def _send(start: Message, body: bytes, asked: str, send: Send) -> None:
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = [*start["headers"], (b"etag", etag.encode())]  # type: ignore[typeddict-item]
    if names_any(asked, {etag}):
        headers = [(name, value) for name, value in headers if name.lower() not in {b"content-length", b"content-type"}]
        await send({"type": "http.response.start", "status": 304, "headers": headers})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return
    start["headers"] = headers  # type: ignore[typeddict-unknown-key]
    await send(start)
    await send({"type": "http.response.body", "body": body, "more_body": False})


# Options of a route.
ETAGGED: dict[str, Any] = {
    "middleware": [etagged],
    "responses": {304: plain(None, "Nothing has changed since the response with the ETag of `If-None-Match`.")},
}
