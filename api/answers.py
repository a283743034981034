"""Which answers a route may give, for the OpenAPI document: the statuses in common, each with its reason."""

from litestar.openapi.datastructures import ResponseSpec

from api.shapes import Problem

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


def problems(common: tuple[int, ...], *more: int) -> dict[int, ResponseSpec]:
    return {
        status: ResponseSpec(Problem, generate_examples=False, description=_WHY[status])
        for status in sorted({*common, *more})
    }
