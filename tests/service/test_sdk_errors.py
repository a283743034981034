"""Every status that the service may answer with is an exception of the official clients' own, with all its fields."""

from collections.abc import Callable
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest
from anthropic._exceptions import ServiceUnavailableError as AnthropicUnavailable

from tests.helpers.service import ApiFormat, NegotiatedFormat, problem

ID = "req_0123456789abcdef01234567"
STATUSES: dict[int, tuple[type[Exception], str, type[Exception]]] = {
    400: (anthropic.BadRequestError, "invalid_request_error", openai.BadRequestError),
    401: (anthropic.AuthenticationError, "authentication_error", openai.AuthenticationError),
    403: (anthropic.PermissionDeniedError, "permission_error", openai.PermissionDeniedError),
    404: (anthropic.NotFoundError, "not_found_error", openai.NotFoundError),
    405: (anthropic.APIStatusError, "invalid_request_error", openai.APIStatusError),
    408: (anthropic.RequestTimeoutError, "timeout_error", openai.APIStatusError),
    413: (anthropic.ContentTooLargeError, "request_too_large", openai.APIStatusError),
    415: (anthropic.APIStatusError, "invalid_request_error", openai.APIStatusError),
    422: (anthropic.UnprocessableEntityError, "invalid_request_error", openai.UnprocessableEntityError),
    429: (anthropic.RateLimitError, "rate_limit_error", openai.RateLimitError),
    500: (anthropic.InternalServerError, "api_error", openai.InternalServerError),
    503: (AnthropicUnavailable, "api_error", openai.InternalServerError),
}


def told(status: int, dialect: ApiFormat, library: Any, call: Callable[[Any], Any]) -> Any:
    """The error that a client raises whose server answers so. `library`: what the client speaks HTTP with."""
    body = problem(NegotiatedFormat(api_format=dialect, request_id=ID), status, "why", param=None)
    headers = {"request-id": ID, "x-request-id": ID}
    transport = library.MockTransport(lambda _: library.Response(status, json=body, headers=headers))
    with library.Client(transport=transport) as http, pytest.raises(Exception) as caught:  # noqa: PT011
        call(http)
    return caught.value


@pytest.mark.parametrize("status", STATUSES)
def test_anthropics_client_raises_its_own_class(status: int) -> None:
    def call(http: Any) -> None:
        client = anthropic.Anthropic(base_url="http://x", api_key="k", http_client=http, max_retries=0)
        client.messages.batches.retrieve("msgbatch_x")

    expected, kind, _ = STATUSES[status]
    error = told(status, "anthropic", httpx2, call)
    assert type(error) is expected
    assert (error.status_code, error.type, error.request_id) == (status, kind, ID)
    assert error.body == {"type": "error", "error": {"type": kind, "message": "why"}, "request_id": ID}


@pytest.mark.parametrize("status", STATUSES)
def test_openais_client_raises_its_own_class(status: int) -> None:
    def call(http: Any) -> None:
        client = openai.OpenAI(base_url="http://x/v1", api_key="k", http_client=http, max_retries=0)
        client.batches.retrieve("batch_x")

    error = told(status, "openai", httpx, call)
    assert type(error) is STATUSES[status][2]
    assert (error.status_code, error.request_id) == (status, ID)
    assert list(error.body) == ["message", "type", "param", "code"]
    assert error.body["message"] == "why"
    assert error.type == ("invalid_request_error" if status < 500 else "server_error")
