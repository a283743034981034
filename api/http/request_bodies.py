"""Validates queries and JSON bodies: fields that would be silently ignored are rejected."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIType

from batchfile.lines.diagnostics import place
from batchfile.lines.file_formats import HEAD_BYTES, detect
from batchfile.lines.json_scan import find_any_repeats

from .errors import AnyRequest, Refusal
from .negotiation import BATCHES, NegotiatedFormat

OWN = "/api/"

Known = Mapping[tuple[str, str], "Parameters"]

_REQUEST = Schema(
    type=OpenAPIType.OBJECT,
    required=["custom_id", "params"],
    properties={
        "custom_id": Schema(
            type=[OpenAPIType.STRING, OpenAPIType.INTEGER],
            min_length=1,
            description="Returned unchanged with the result; integers become strings.",
        ),
        "params": Schema(type=OpenAPIType.OBJECT, description="`messages`, `system`, `max_tokens`, sampling."),
        "metadata": Schema(type=OpenAPIType.OBJECT, description="Your own fields. `model_hint`: a pool or model."),
    },
)
_DOCUMENT = Schema(
    type=OpenAPIType.OBJECT,
    required=["stage", "requests"],
    additional_properties=False,
    properties={
        "stage": Schema(type=OpenAPIType.STRING),
        "model_hint": Schema(type=OpenAPIType.STRING, description="The pool or model of requests that name none."),
        "requests": Schema(type=OpenAPIType.ARRAY, items=_REQUEST, min_items=1),
    },
)


@dataclass
class JSON_OR_LINES(Operation):
    """Documents the body of routes that stream it."""

    def __post_init__(self) -> None:
        self.request_body = RequestBody(
            required=True,
            content={
                "application/json": OpenAPIMediaType(schema=_DOCUMENT),
                "application/x-ndjson": OpenAPIMediaType(schema=Schema(type=OpenAPIType.STRING, min_length=1)),
            },
        )


def check_document(body: bytes) -> None:
    """Reject what the parser of a small JSON document would silently drop.

    Raises: Refusal 400 if an object at any depth repeats a key; InvalidFile if the body is not text.
    """
    detect("the body", body[:HEAD_BYTES])
    for path in find_any_repeats(body):
        where = place(path)
        raise Refusal(400, f"{where}: is given twice; keep one of them", param=where)


@dataclass(frozen=True, slots=True)
class Parameters:
    """The query parameters of one operation. `repeated`: those that may be repeated."""

    names: frozenset[str]
    repeated: frozenset[str]


def known_parameters(document: Mapping[str, Any]) -> Known:
    """The parameters in the OpenAPI document, by method and path. The routes read no others."""
    return {
        (method.upper(), path): _parameters(operation.get("parameters", []))
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }


def check_query(known: Known, request: AnyRequest) -> None:
    """Reject unknown query parameters on `/api/*` and when a batch of a stage is created.

    Clients of Anthropic and OpenAI send additional ones (`?beta=true`), which are accepted on their routes.
    Raises: Refusal 400 that names the parameter and the known ones.
    """
    method = "GET" if request.method == "HEAD" else str(request.method)
    path = request.scope["path_template"]
    negotiated: NegotiatedFormat = request.scope["negotiated"]  # type: ignore[typeddict-item]
    is_stage_create = (method, path, negotiated.api_format) == ("POST", BATCHES, "stage")
    parameters = known.get((method, path))
    if parameters is None or not (path.startswith(OWN) or is_stage_create):
        return
    seen = set[str]()
    for name, _ in request.query_params.multi_items():
        if name not in parameters.names:
            there_are = f"use {', '.join(sorted(parameters.names))}" if parameters.names else "it has none"
            detail = f"{name[:80]!r} is not a query parameter of {method} {path}; {there_are}"
            raise Refusal(400, detail, param=name[:80])
        if name in seen and name not in parameters.repeated:
            raise Refusal(400, f"{name}: is repeated in the query; send it once", param=name)
        seen.add(name)


def _parameters(documented: Iterable[Mapping[str, Any]]) -> Parameters:
    found = {one["name"]: one.get("schema", {}) for one in documented if one["in"] == "query"}
    kinds = {name: [schema, *schema.get("oneOf", []), *schema.get("anyOf", [])] for name, schema in found.items()}
    repeated = {name for name, those in kinds.items() if any("array" in str(one.get("type")) for one in those)}
    return Parameters(frozenset(found), frozenset(repeated))
