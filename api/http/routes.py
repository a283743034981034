"""How routes are declared: the operations of one subject with the errors that all of them have, and what handlers are
given.
"""

import asyncio
from collections.abc import Callable
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any

from litestar import delete, get, post
from litestar.di import NamedDependency
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec

from ..native.schemas import Problem
from ..service import Service
from .auth import Caller
from .negotiation import NegotiatedFormat

CallerDep = NamedDependency[Caller]
ServiceDep = NamedDependency[Service]
FormatDep = NamedDependency[NegotiatedFormat]

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
COMMON = (401, 404, 405, 429, 500, 503)
CREATE = (400, 408, 413, 415, 422)

Handler = Callable[..., Any]
Declare = Callable[[Handler], HTTPRouteHandler]


class Routes:
    """Operations under `prefix`. `problem`: what their errors look like; `common`: the statuses of errors of each.

    A handler that is not a coroutine runs in a thread, because it asks the store. HEAD is there wherever GET is.
    """

    def __init__(
        self, prefix: str, *, tag: str | None = None, problem: Any = Problem, common: tuple[int, ...] = COMMON
    ) -> None:
        self.prefix = prefix
        self.handlers: list[HTTPRouteHandler] = []
        self._tag = tag
        self._problem = problem
        self._common = common

    def get(self, path: str, *errors: int, **more: Any) -> Declare:
        """`errors`: further statuses. `more`: as Litestar has it; its `responses` are added to the errors."""
        return self._declare(get, path, errors, more)

    def post(self, path: str, *errors: int, **more: Any) -> Declare:
        return self._declare(post, path, errors, more)

    def delete(self, path: str, *errors: int, **more: Any) -> Declare:
        return self._declare(delete, path, errors, more)

    def _declare(self, method: Any, path: str, errors: tuple[int, ...], more: dict[str, Any]) -> Declare:
        responses = {
            status: ResponseSpec(self._problem, generate_examples=False, description=_WHY[status])
            for status in sorted({*self._common, *errors})
        }
        options: dict[str, Any] = {"status_code": 200, "tags": [self._tag] if self._tag else None, **more}
        options["responses"] = responses | more.get("responses", {})

        def declare(handler: Handler) -> HTTPRouteHandler:
            asynchronous = handler if iscoroutinefunction(handler) else _in_thread(handler)
            declared: HTTPRouteHandler = method(self.prefix + path, **options)(asynchronous)
            if method is get:
                declared.http_methods.add("HEAD")  # the auth middleware strips the bodies
            self.handlers.append(declared)
            return declared

        return declare


def _in_thread(handler: Handler) -> Handler:
    """Litestar's own `sync_to_thread` loses the handler's name and docstring in the OpenAPI document."""

    @wraps(handler)
    async def asynchronous(*args: Any, **named: Any) -> Any:
        return await asyncio.to_thread(handler, *args, **named)

    return asynchronous
