"""Query parameters that no route reads, which would be ignored in silence: rejected on our own routes.

On `/api/*`, and where a stage's batch is created. Clients of Anthropic and OpenAI send parameters of their own
(`?beta=true`), which are accepted on their routes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from litestar import Request

from .errors import Refusal
from .negotiation import BATCHES, NegotiatedFormat

OWN = "/api/"

Known = Mapping[tuple[str, str], "Parameters"]


@dataclass(frozen=True, slots=True)
class Parameters:
    """Of one operation. `repeated`: those that may come several times."""

    names: frozenset[str]
    repeated: frozenset[str]


def known_parameters(document: Mapping[str, Any]) -> Known:
    """By method and path: what the OpenAPI document names, which is what the routes read."""
    return {
        (method.upper(), path): _parameters(operation.get("parameters", []))
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }


def check_query(known: Known, request: Request[Any, Any, Any]) -> None:
    """Raises: Refusal 400 that names the parameter and those that there are."""
    method = "GET" if request.method == "HEAD" else str(request.method)
    path = request.scope["path_template"]
    negotiated: NegotiatedFormat = request.scope["negotiated"]  # type: ignore[typeddict-item]
    is_stage_create = (method, path, negotiated.dialect) == ("POST", BATCHES, "stage")
    parameters = known.get((method, path))
    if parameters is None or not (path.startswith(OWN) or is_stage_create):
        return
    seen = set[str]()
    for name, _ in request.query_params.multi_items():
        if name not in parameters.names:
            there_are = f"it takes {', '.join(sorted(parameters.names))}" if parameters.names else "it takes none"
            detail = f"{name[:80]!r} is not a query parameter of {method} {path}; {there_are}"
            raise Refusal(400, detail, param=name[:80])
        if name in seen and name not in parameters.repeated:
            raise Refusal(400, f"{name}: comes twice in the query; send it once", param=name)
        seen.add(name)


def _parameters(documented: Iterable[Mapping[str, Any]]) -> Parameters:
    found = {one["name"]: one.get("schema", {}) for one in documented if one["in"] == "query"}
    kinds = {name: [schema, *schema.get("oneOf", []), *schema.get("anyOf", [])] for name, schema in found.items()}
    repeated = {name for name, those in kinds.items() if any("array" in str(one.get("type")) for one in those)}
    return Parameters(frozenset(found), frozenset(repeated))
