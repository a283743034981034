"""Declares routes: groups of operations with their common errors, and the dependencies of handlers."""

import asyncio
from collections.abc import Callable
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any

from litestar import delete, get, post
from litestar.di import NamedDependency
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec

from .auth import Caller
from .negotiation import NegotiatedFormat, Problem

CallerDep = NamedDependency[Caller]
FormatDep = NamedDependency[NegotiatedFormat]

_WHY = {
    400: "The request is invalid; the detail says where.",
    401: "The API key is missing or invalid.",
    404: "Not found, or owned by another tenant.",
    405: "The path does not allow this method.",
    408: "The request body did not arrive in time.",
    413: "The request exceeds a size limit.",
    415: "The content type or encoding is not supported.",
    416: "The range is outside the file.",
    422: "The idempotency key was used with a different request.",
    429: "Too many requests or open batches; retry after `Retry-After` seconds.",
    500: "Internal error; the server log has the cause under the request id.",
    503: "The store is unavailable; retry after `Retry-After` seconds.",
}
COMMON = (401, 404, 405, 429, 500, 503)
CREATE = (400, 408, 413, 415, 422)

Handler = Callable[..., Any]
Declare = Callable[[Handler], HTTPRouteHandler]


class Routes:
    """Operations under `prefix`. `problem`: the schema of their errors; `common`: error statuses of all of them.

    A handler that is not a coroutine runs in a thread, because it reads the store. Every GET also has HEAD.
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
        """`errors`: additional error statuses. `more`: Litestar's options; its `responses` are added to the errors."""
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
    """Replaces Litestar's `sync_to_thread`, which loses the handler's name and docstring in the OpenAPI document."""

    @wraps(handler)
    async def asynchronous(*args: Any, **named: Any) -> Any:
        return await asyncio.to_thread(handler, *args, **named)

    return asynchronous
