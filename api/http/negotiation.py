"""Chooses the API format of a response from the request's path, headers and key, and formats errors in it.

In this order: a `batchfile-dialect` header, the key's setting, a `stage` in the body (which the route handles), the
headers of Anthropic's clients, the batch's id. OpenAI's clients get OpenAI's errors on any other path. Pure.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

ApiFormat = Literal["native", "stage", "anthropic", "openai"]
Asked = Literal["stage", "anthropic"]

BATCHES = "/v1/messages/batches"
ANTHROPIC_ID = "msgbatch_"
HEADER = b"batchfile-dialect"

_OPENAI = re.compile(r"/v1/(models|files|uploads|batches)(/|$)")
_OPENAI_ONLY = re.compile(r"/v1/(files|uploads)(/|$)")
_ANTHROPIC_AGENT = re.compile(rb"(Async)?Anthropic/")
_OPENAI_AGENT = re.compile(rb"(Async)?OpenAI/")
_ASKED: dict[bytes, Asked] = {b"stage": "stage", b"anthropic": "anthropic"}

# Status -> the type of an error; others are invalid_request_error below 500 and api_error from there on.
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NegotiatedFormat:
    """The API format of one response. `is_asked`: set by a header or the key, which overrides the body."""

    api_format: ApiFormat
    request_id: str
    is_asked: bool = False


def negotiate(
    method: str, path: str, headers: Mapping[bytes, bytes], *, of_key: Asked | None, request_id: str
) -> NegotiatedFormat:
    """`headers`: names in lower case. `of_key`: the format that the caller's key is set to."""
    path = path.rstrip("/")
    if path == BATCHES or path.startswith(BATCHES + "/"):
        asked = _ASKED.get(headers.get(HEADER, b"").strip().lower()) or of_key
        api_format = asked or ("anthropic" if _is_anthropic(headers) else _of_batch(method, path.removeprefix(BATCHES)))
        return NegotiatedFormat(api_format=api_format, request_id=request_id, is_asked=asked is not None)
    if path.startswith("/v1/") and _is_anthropic(headers):
        return NegotiatedFormat(api_format="anthropic", request_id=request_id)
    is_openai = _OPENAI.match(path) or _OPENAI_AGENT.match(headers.get(b"user-agent", b""))
    return NegotiatedFormat(api_format="openai" if is_openai else "native", request_id=request_id)


def needs_other_format(negotiated: NegotiatedFormat, path: str) -> bool:
    """Would the caller get a format that it cannot read? Anthropic's Files API is a different one."""
    return negotiated.api_format == "anthropic" and _OPENAI_ONLY.match(path) is not None


class Problem(BaseModel):
    """The body of every error response."""

    detail: str


class OpenAIError(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIProblem(BaseModel):
    """The body of every error response, in OpenAI's API format."""

    error: OpenAIError


def problem(negotiated: NegotiatedFormat, status: int, detail: str, *, param: str | None = None) -> dict[str, Any]:
    """The body of an error response. `param` is OpenAI's."""
    if negotiated.api_format == "anthropic":
        kind = _ANTHROPIC_TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": detail}, "request_id": negotiated.request_id}
    if negotiated.api_format == "openai":
        kind = "invalid_request_error" if status < 500 else "server_error"
        code = "invalid_api_key" if status == 401 else None
        return {"error": {"message": detail, "type": kind, "param": param, "code": code}}
    return {"detail": detail}


def _is_anthropic(headers: Mapping[bytes, bytes]) -> bool:
    """Checks presence only: proxies repeat values, and versions change."""
    if b"anthropic-version" in headers or b"anthropic-beta" in headers:
        return True
    return _ANTHROPIC_AGENT.match(headers.get(b"user-agent", b"")) is not None


def _of_batch(method: str, rest: str) -> Asked:
    """The default without any hint. The stage contract has no list, cancel or delete."""
    is_theirs = method == "DELETE" or rest.endswith("/cancel") or (method in {"GET", "HEAD"} and not rest)
    return "anthropic" if is_theirs or rest.startswith("/" + ANTHROPIC_ID) else "stage"
