"""Where this service is, as its callers see it: for links in answers."""

import re
from typing import Any

from litestar import Request

from batchfile.settings_tables import Api

_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}")


def own_url(request: Request[Any, Any, Any], api: Api) -> str:
    """`https://host[/prefix]` without a slash at its end; "" where it can not be told, and links are relative.

    `api.public_url` where it is set, else what the request says it was sent to. What a proxy adds counts only where
    the settings trust it: a caller sends its key to such a link.
    """
    if api.public_url:
        return api.public_url.rstrip("/")
    scheme, host = str(request.scope["scheme"]), request.headers.get("host", "")
    if api.trust_forwarded:
        scheme = _first(request, "x-forwarded-proto") or scheme
        host = _first(request, "x-forwarded-host") or host
    return f"{scheme}://{host}" if scheme in {"http", "https"} and _HOST.fullmatch(host) else ""


def _first(request: Request[Any, Any, Any], name: str) -> str:
    """What the proxy nearest to the caller says."""
    return request.headers.get(name, "").partition(",")[0].strip()
