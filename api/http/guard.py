"""What is refused before anybody asks who calls: a request that two readers may read in two ways, and one that a web
page makes a browser send to a service that asks for no key. Pure.
"""

import ipaddress
from collections.abc import Iterable

from .errors import Refusal

# Who stands before this service may go by the first of two and this service by the last.
SAID_ONCE = frozenset({b"host", b"authorization", b"x-api-key", b"transfer-encoding", b"idempotency-key"})
# Names that no public server of names answers for, so that no page of somebody else can bear them.
PRIVATE_ENDINGS = (".localhost", ".internal", ".local")

Headers = Iterable[tuple[bytes, bytes]]


def check_reading(headers: Headers, http_version: str) -> None:
    """Raises: Refusal (400, 501) where it does not say one thing only. Names are in lower case."""
    names = [name for name, _ in headers]
    for name in SAID_ONCE:
        if names.count(name) > 1:
            raise Refusal(400, f"{name.decode()}: comes twice; send it once")
    if not dict(headers).get(b"idempotency-key", b"-").strip():
        raise Refusal(400, "Idempotency-Key: is empty; send a UUID, or leave the header out")
    if http_version == "1.1" and b"host" not in names:
        raise Refusal(400, "host: is missing; HTTP/1.1 needs it")
    coding = dict(headers).get(b"transfer-encoding", b"chunked").strip().lower()
    if coding != b"chunked":
        raise Refusal(501, "Transfer-Encoding: only chunked is read here; pack the body with Content-Encoding")


def check_browser(headers: Headers, *, is_local: bool) -> None:
    """For a service without keys. `is_local`: only this machine is meant to reach it.

    A browser tells where a page is from, or at least that it is from elsewhere, and asks by a name: one that the page's
    owner has pointed at this machine is still a public one. To follow a link to here is fine. Raises: Refusal 403.
    """
    known = dict(headers)
    host = known.get(b"host", b"").decode("latin-1").lower()
    origin = known.get(b"origin", b"").decode("latin-1").lower()
    is_embedded = known.get(b"sec-fetch-site") == b"cross-site" and known.get(b"sec-fetch-mode") != b"navigate"
    if is_embedded or (origin and origin.partition("://")[2] != host):
        raise Refusal(403, "A web page of another place asks this service, which has no API keys: make one for it.")
    if is_local and _is_public_name(host):
        raise Refusal(
            403,
            "Without API keys this service is for its own machine, and was asked for by a public name. Ask for "
            "localhost, make a key with `batchfile keys new TENANT`, or set BATCHFILE_ALLOW_ANONYMOUS=1.",
        )


def _is_public_name(host: str) -> bool:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    name = name.strip("[]").rstrip(".")
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." in name and not name.endswith(PRIVATE_ENDINGS)
    return False
