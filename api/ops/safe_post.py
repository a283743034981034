"""Sends one POST to a user's server safely: only to a checked address, without redirects and proxies, in bounded time.

Reads only the status of the response.
"""

import http.client
import threading
from collections.abc import Mapping
from urllib.parse import urlsplit

from batchfile.safe_http import connect, target_of

POST_S = 25.0  # for all steps after the DNS lookup, which takes the resolver's own time


def post(url: str, body: bytes, headers: Mapping[str, str], *, allow_private: bool) -> str | None:
    """None if the server answered 2xx, otherwise what went wrong. Network errors are returned, not raised."""
    try:
        parts = urlsplit(url)
        connection = connect(parts, allow_private=allow_private)
        if connection is None:
            return f"{parts.hostname} has a private address; set allow_private for this webhook if you trust it"
        given_up = threading.Timer(POST_S, connection.cut)
        given_up.start()
        try:
            connection.request("POST", target_of(parts), body, {"Content-Type": "application/json", **headers})
            status = connection.getresponse().status
        finally:
            given_up.cancel()
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        return f"the request failed: {error}"
    return None if 200 <= status < 300 else f"the server answered {status}"
