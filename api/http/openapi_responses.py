"""Which answers a route may give, for the OpenAPI document: the statuses in common, each with its reason; files."""

from dataclasses import dataclass
from typing import Any

from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIResponse, Operation, Schema
from litestar.openapi.spec.enums import OpenAPIType

from ..native.schemas import Problem, StageResults

JSON_LINES = "application/x-ndjson"

_WHY = {
    400: "The request is wrong; the detail names the place.",
    401: "No valid API key.",
    404: "There is no such thing, or it is another tenant's.",
    405: "The path exists with another method.",
    408: "The body stopped arriving.",
    413: "Over a limit of this service.",
    415: "A content type or encoding that is not taken.",
    416: "The range lies outside the file.",
    422: "The idempotency key was used with another body.",
    429: "Too much at once; `Retry-After` says when.",
    500: "Something unexpected; the log has it under the request's id.",
    503: "The store does not answer; `Retry-After` says when.",
}

READ = (401, 404, 405, 429, 500, 503)
CREATE = (*READ, 400, 408, 413, 415, 422)


def problems(common: tuple[int, ...], *more: int, shape: Any = Problem) -> dict[int, ResponseSpec]:
    return {
        status: ResponseSpec(shape, generate_examples=False, description=_WHY[status])
        for status in sorted({*common, *more})
    }


def _plain(answer: type | None, description: str, media_type: str = "application/json") -> ResponseSpec:
    return ResponseSpec(answer, generate_examples=False, description=description, media_type=media_type)


FILE = {
    200: _plain(str, "The file.", JSON_LINES),
    206: _plain(str, "The range that was asked for.", JSON_LINES),
    304: _plain(None, "`If-None-Match` names the file as it is."),
}
STAGE_RESULTS = {200: _plain(StageResults, "The results; JSON lines where these are accepted.")}


@dataclass
class OR_LINES(Operation):
    """Documents a success that may come as JSON lines as well."""

    def __post_init__(self) -> None:
        success = (self.responses or {})["200"]
        if isinstance(success, OpenAPIResponse) and success.content is not None:
            success.content[JSON_LINES] = OpenAPIMediaType(schema=Schema(type=OpenAPIType.STRING))
