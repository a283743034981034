"""Errors as answers: one table from what is raised to a status and a detail. Knows no route.

A detail says what happened and what to do. What is not expected is a 500 without its text; the log has it.
"""

from typing import Any

import structlog
from litestar import MediaType, Request, Response
from litestar.exceptions import HTTPException

from batchfile.errors import (
    BatchDamaged,
    BatchfileError,
    InvalidFile,
    InvalidRequest,
    KeyReused,
    RecordDamaged,
    RecordNewer,
    StoreError,
    StoreFull,
    StoreUnavailable,
    TooLarge,
)
from batchfile.ledger.damage import DAMAGED
from batchfile.ledger.status import NEWER, UNREADABLE

from .negotiation import NegotiatedFormat, problem
from .wording import explain

log = structlog.get_logger()

RETRY_AFTER_S = 5
_WHOLE_BODY = {None, "", "data"}  # what Litestar calls the body itself
DOCS = "/docs lists what there is"


class Refusal(Exception):
    """An answer that is no success, decided by a route: its status, its detail, its headers.

    `param` (which part of the request is wrong) is for dialects that have it.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        headers: dict[str, str] | None = None,
        *,
        param: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers or {}
        self.param = param


def not_found() -> Refusal:
    return Refusal(404, "Batch not found")


def unreadable() -> Refusal:
    """There is a batch, and the store gives nothing that tells whose it is."""
    return Refusal(503, f"{UNREADABLE.capitalize()}.", {"Retry-After": str(RETRY_AFTER_S)})


def to_refusal(error: Exception, request: Request[Any, Any, Any]) -> Refusal:
    """What the caller is told. Anything unknown is ours to mend: 500, and the log keeps the cause."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, HTTPException):
        return _of_litestar(error, request)
    if isinstance(error, RecursionError):  # msgspec's; no other code of ours goes as deep as its input
        return Refusal(400, "The body is nested too deeply; flatten it.")
    for kind, status, headers in _TABLE:
        if isinstance(error, kind):
            return Refusal(status, _detail(error), headers)
    log.error("request.failed", path=request.url.path, exc_info=error)
    return Refusal(500, "Something unexpected happened here; the log of this server has it under the request's id.")


# The first kind that fits. Tested to know every error that a route may meet.
_TABLE: list[tuple[type[BatchfileError], int, dict[str, str]]] = [
    (StoreFull, 503, {"Retry-After": "60"}),
    (StoreUnavailable, 503, {"Retry-After": str(RETRY_AFTER_S)}),
    (StoreError, 503, {"Retry-After": "60"}),
    (TooLarge, 413, {}),
    (InvalidFile, 400, {}),
    (InvalidRequest, 400, {}),
    (KeyReused, 422, {}),
    (RecordNewer, 503, {"Retry-After": "60"}),  # another replica may be upgraded already
    (BatchDamaged, 500, {}),
]


def _detail(error: BatchfileError) -> str:
    if isinstance(error, StoreFull):
        return f"The store has no room: {error}"
    if isinstance(error, StoreUnavailable):
        return "The store does not answer now; try again."
    if isinstance(error, StoreError):
        log.error("store.unusable", error=str(error))
        return "The store can not be used now; the log of this server says why."
    if isinstance(error, RecordNewer | RecordDamaged):  # the key is the operator's alone
        log.error("batch.unreadable", error=str(error))
        return (NEWER if isinstance(error, RecordNewer) else DAMAGED).capitalize() + "."
    if isinstance(error, BatchDamaged):
        log.error("batch.damaged", error=str(error))
        return f"Something is wrong with this batch: {error}"
    return str(error)


def answer(request: Request[Any, Any, Any], error: Exception) -> Response[dict[str, Any]]:
    """Litestar's exception handler, for everything."""
    refusal = to_refusal(error, request)
    return Response(
        problem(
            request.scope["negotiated"],  # type: ignore[typeddict-item]
            refusal.status,
            refusal.detail,
            param=refusal.param,
        ),
        status_code=refusal.status,
        headers=refusal.headers,
        media_type=MediaType.JSON,
    )


def _with_keys(request: Request[Any, Any, Any]) -> str:
    """The keys that the route's body needs."""
    field = request.route_handler.parsed_data_field
    fields = getattr(None if field is None else field.annotation, "model_fields", {})
    names = [name for name, one in fields.items() if one.is_required()]
    return f" with {', '.join(names)}" if names else ""


def _of_litestar(error: HTTPException, request: Request[Any, Any, Any]) -> Refusal:
    where = f"{request.scope['method']} {request.url.path}"
    headers = {name.title(): value for name, value in (error.headers or {}).items()}
    if error.status_code == 404:
        negotiated: NegotiatedFormat = request.scope["negotiated"]  # type: ignore[typeddict-item]
        is_astray = negotiated.dialect == "openai" and not request.url.path.startswith("/v1/")
        return Refusal(404, f"There is no {where}; {'base_url must end in /v1' if is_astray else DOCS}.", headers)
    if error.status_code == 405:
        return Refusal(405, f"There is no {where}; it exists with {headers.get('Allow', 'other methods')}.", headers)
    extra = error.extra if isinstance(error.extra, list) else []
    if any(isinstance(item, dict) and item.get("key") in _WHOLE_BODY for item in extra):
        return Refusal(error.status_code, f"The body must be a JSON object{_with_keys(request)}.", headers)
    keys = [str(item.get("key", "")) for item in extra if isinstance(item, dict)]
    document = getattr(request.app.state, "document", {})
    places = explain(document, request.method, request.scope["path_template"], keys) if keys else []
    return Refusal(error.status_code, "; ".join(places) or error.detail, headers, param=keys[0] if keys else None)
