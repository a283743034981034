"""`/v1/models` as Anthropic's and as OpenAI's clients read it."""

import hashlib
from collections.abc import Callable
from typing import Any

import pytest

ANTHROPIC = {"anthropic-version": "2026-10-21"}
MISTRAL = "mistralai/Mistral-7B-Instruct-v0.3"
LLAMA = "meta-llama/Meta-Llama-3-70B-Instruct"


def test_the_pools_are_the_models_in_both_shapes(api: Any) -> None:
    anthropic = api.http.get("/v1/models", headers=ANTHROPIC).json()
    assert [(model["id"], model["display_name"]) for model in anthropic["data"]] == [
        ("llama-70b", LLAMA),
        ("mistral", MISTRAL),
    ]
    assert anthropic["data"][1] == {
        "id": "mistral",
        "type": "model",
        "display_name": MISTRAL,
        "created_at": "1970-01-01T00:00:00Z",
        "lifecycle": "active",
        "line": None,
        "capabilities": None,
        "deprecated_at": None,
        "retires_at": None,
        "max_input_tokens": 8192,
        "max_tokens": 8192,
    }
    assert (anthropic["has_more"], anthropic["first_id"], anthropic["last_id"]) == (False, "llama-70b", "mistral")
    openai = api.http.get("/v1/models").json()
    assert openai["object"] == "list"
    assert openai["data"][1] == {"id": "mistral", "object": "model", "created": 0, "owned_by": "batchfile"}


@pytest.mark.parametrize("name", ["mistral", MISTRAL, MISTRAL.replace("/", "%2F")])
def test_a_model_is_found_by_all_that_a_request_may_call_it(api: Any, name: str) -> None:
    assert api.http.get(f"/v1/models/{name}", headers=ANTHROPIC).json()["id"] == "mistral"
    assert api.http.get(f"/v1/models/{name}").json()["id"] == "mistral"


def test_adapters_are_models_of_their_own(start_api: Callable[..., Any]) -> None:
    api = start_api(BATCHFILE_POOLS__MISTRAL__LORA='{"sql": "/adapters/sql"}')
    assert [model["id"] for model in api.http.get("/v1/models").json()["data"]] == ["llama-70b", "mistral", "sql"]
    found = api.http.get("/v1/models/sql", headers=ANTHROPIC).json()
    assert (found["id"], found["display_name"]) == ("sql", MISTRAL)


def test_an_unknown_model_is_not_found_in_the_callers_own_shape(api: Any) -> None:
    anthropic = api.http.get("/v1/models/gpt", headers=ANTHROPIC)
    assert (anthropic.status_code, anthropic.json()["error"]["type"]) == (404, "not_found_error")
    openai = api.http.get("/v1/models/gpt")
    assert openai.status_code == 404
    assert list(openai.json()["error"]) == ["message", "type", "param", "code"]


def test_models_are_for_those_with_a_key(start_api: Callable[..., Any]) -> None:
    api = start_api(BATCHFILE_API_KEYS=f"acme:{hashlib.sha256(b'k').hexdigest()}")
    assert api.http.get("/v1/models", headers=ANTHROPIC).json()["error"]["type"] == "authentication_error"
    assert api.http.get("/v1/models").json()["error"]["code"] == "invalid_api_key"
    assert api.http.get("/v1/models", headers={"authorization": "Bearer k"}).status_code == 200
