"""Maps exceptions to error responses: a status and a detail. Independent of the routes.

A detail says what happened and what to do. An unexpected exception is a 500 without its text, which is in the log.
"""

from collections.abc import Iterable, Mapping
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
    NotFound,
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

log = structlog.get_logger()

RETRY_AFTER_S = 5
_WHOLE_BODY = {None, "", "data"}  # what Litestar calls the body itself
DOCS = "see /docs for all paths"
REASON = "reason"  # why a request is rejected: in its scope, for the log

AnyRequest = Request[Any, Any, Any]
Schema = Mapping[str, Any]

_ANY: Schema = {}
_NOUNS = {
    "integer": "a whole number",
    "number": "a number",
    "string": "a string",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
}


class Refusal(Exception):
    """An error response that a route decides on: status, detail and headers.

    `param`: the invalid part of the request, for API formats that name it.
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
    """The batch exists, but the store does not show whose it is."""
    return Refusal(503, f"{UNREADABLE.capitalize()}.", {"Retry-After": str(RETRY_AFTER_S)})


def to_refusal(error: Exception, request: AnyRequest) -> Refusal:
    """The response to an exception. Anything unexpected is a 500, with the cause in the log."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, HTTPException):
        return _of_litestar(error, request)
    if isinstance(error, RecursionError):  # from msgspec; no other code here recurses as deep as its input
        return Refusal(400, "The body is nested too deeply; use fewer levels.")
    for kind, status, headers in _TABLE:
        if isinstance(error, kind):
            return Refusal(status, _detail(error), headers)
    log.error("request.failed", path=request.url.path, exc_info=error)
    return Refusal(500, "Internal error. The server log has the cause under the request id.")


# The first match counts. A test checks that it covers every error that a route may raise.
_TABLE: list[tuple[type[BatchfileError], int, dict[str, str]]] = [
    (StoreFull, 503, {"Retry-After": "60"}),
    (StoreUnavailable, 503, {"Retry-After": str(RETRY_AFTER_S)}),
    (StoreError, 503, {"Retry-After": "60"}),
    (TooLarge, 413, {}),
    (InvalidFile, 400, {}),
    (NotFound, 404, {}),
    (InvalidRequest, 400, {}),
    (KeyReused, 422, {}),
    (RecordNewer, 503, {"Retry-After": "60"}),  # another replica may already be upgraded
    (BatchDamaged, 500, {}),
]


def _detail(error: BatchfileError) -> str:
    if isinstance(error, StoreFull):
        return f"The store is full: {error}"
    if isinstance(error, StoreUnavailable):
        return "The store is unavailable; retry the request."
    if isinstance(error, StoreError):
        log.error("store.unusable", error=str(error))
        return "The store cannot be used; see the server log for the cause."
    if isinstance(error, RecordNewer | RecordDamaged):  # only the operator may see the key
        log.error("batch.unreadable", error=str(error))
        return (NEWER if isinstance(error, RecordNewer) else DAMAGED).capitalize() + "."
    if isinstance(error, BatchDamaged):
        log.error("batch.damaged", error=str(error))
        return f"This batch is damaged: {error}"
    return str(error)


def answer(request: AnyRequest, error: Exception) -> Response[dict[str, Any]]:
    """Litestar's exception handler, for everything."""
    refusal = to_refusal(error, request)
    request.scope[REASON] = refusal.detail  # type: ignore[literal-required]
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


def _with_keys(request: AnyRequest) -> str:
    """The required fields of the route's body."""
    field = request.route_handler.parsed_data_field
    fields = getattr(None if field is None else field.annotation, "model_fields", {})
    names = [name for name, one in fields.items() if one.is_required()]
    return f" with {', '.join(names)}" if names else ""


def _of_litestar(error: HTTPException, request: AnyRequest) -> Refusal:
    where = f"{request.scope['method']} {request.url.path}"
    headers = {name.title(): value for name, value in (error.headers or {}).items()}
    if error.status_code == 404:
        negotiated: NegotiatedFormat = request.scope["negotiated"]  # type: ignore[typeddict-item]
        is_astray = negotiated.api_format == "openai" and not request.url.path.startswith("/v1/")
        return Refusal(404, f"{where} not found; {'base_url must end in /v1' if is_astray else DOCS}.", headers)
    if error.status_code == 405:
        return Refusal(405, f"{where} is not allowed; use {headers.get('Allow', 'another method')}.", headers)
    extra = error.extra if isinstance(error.extra, list) else []
    if any(isinstance(item, dict) and item.get("key") in _WHOLE_BODY for item in extra):
        return Refusal(error.status_code, f"The body must be a JSON object{_with_keys(request)}.", headers)
    keys = [str(item.get("key", "")) for item in extra if isinstance(item, dict)]
    document = getattr(request.app.state, "document", {})
    places = validation_problems(document, request.method, request.scope["path_template"], keys) if keys else []
    return Refusal(error.status_code, "; ".join(places) or error.detail, headers, param=keys[0] if keys else None)


def validation_problems(document: Schema, method: str, path: str, keys: Iterable[str]) -> list[str]:
    """A sentence for each invalid place, `a.b`, of the query or the body of an operation.

    Built from the OpenAPI document, so that no response repeats a library's exception.
    """
    method = "get" if method == "HEAD" else method.lower()
    operation = document.get("paths", _ANY).get(path, _ANY).get(method, _ANY)
    query = {one["name"]: one for one in operation.get("parameters", []) if one["in"] == "query"}
    body = operation.get("requestBody", _ANY).get("content", _ANY).get("application/json", _ANY).get("schema", _ANY)
    found = []
    for key in keys:
        if key in query:
            found.append(f"{key}: must be {_words(document, query[key].get('schema', _ANY))}")
        else:
            found.append(f"{key}: {_of_body(document, body, key.split('.'))}")
    return list(dict.fromkeys(found))


def _of_body(document: Schema, schema: Schema, path: list[str]) -> str:
    is_required = False
    for number, name in enumerate(path):
        schema = next(iter(_choices(document, schema)), _ANY)
        fields = schema.get("properties", _ANY)
        more = schema.get("additionalProperties", True)
        if name in fields:
            is_required = name in schema.get("required", ())
            schema = fields[name]
        elif isinstance(more, Mapping):
            schema, is_required = more, False
        elif more is False:
            return f"is unknown; use {', '.join(sorted(fields))}"
        else:  # inside a list, for example: describe the enclosing value
            return f"is invalid: {'.'.join(path[:number]) or 'the body'} must be {_words(document, schema)}"
    return f"{'is required, and ' if is_required else ''}must be {_words(document, schema)}"


def _choices(document: Schema, schema: Schema) -> list[Schema]:
    """The alternatives of a schema, without references and null."""
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    several = [*schema.get("oneOf", []), *schema.get("anyOf", [])]
    if not several:
        return [] if schema.get("type") == "null" else [schema]
    return [one for inner in several for one in _choices(document, inner)]


def _words(document: Schema, schema: Schema) -> str:
    return " or ".join(dict.fromkeys(map(_of_one, _choices(document, schema)))) or "left out"


def _of_one(schema: Schema) -> str:
    values = [schema["const"]] if "const" in schema else [one for one in schema.get("enum", []) if one is not None]
    if values:
        shown = ", ".join(repr(value) for value in values)
        return f"one of {shown}" if len(values) > 1 else str(shown)
    kinds = schema.get("type", "object")
    kind = next(one for one in ([kinds] if isinstance(kinds, str) else kinds) if one != "null")
    span = _span(schema, "minimum", "maximum")
    for low, high, noun in (
        ("minLength", "maxLength", "characters"),
        ("minItems", "maxItems", "entries"),
        ("minProperties", "maxProperties", "keys"),
    ):
        size = _span(schema, low, high).removeprefix(" of ").removeprefix(" from ")
        span += f" with {size} {noun}" if size else ""
    return _NOUNS.get(str(kind), str(kind)) + span


def _span(schema: Schema, low_name: str, high_name: str) -> str:
    low, high = schema.get(low_name), schema.get(high_name)
    if low is not None and high is not None:
        return f" from {_number(low)} to {_number(high)}"
    if low is not None:
        return f" of at least {_number(low)}"
    return "" if high is None else f" of at most {_number(high)}"


def _number(value: float) -> str:
    return str(int(value) if value == int(value) else value)
