"""Answers say in our own words what a value must be."""

import re
from typing import Any

import pytest

FOREIGN = re.compile(r"Expected|Input should|Field required|Extra inputs|String should|`int`|`str`|Error[(]")
BATCH = {"input_file_id": "file-1", "endpoint": "/v1/embeddings", "completion_window": "24h"}


@pytest.mark.parametrize(
    ("method", "path", "body", "message"),
    [
        ("POST", "/api/batches?priority=99", None, "priority: must be a whole number from 0 to 9"),
        ("POST", "/api/batches?priority=x", None, "priority: must be a whole number from 0 to 9"),
        ("POST", "/api/batches?strict=maybe", None, "strict: must be true or false"),
        ("GET", "/api/batches?limit=0", None, "limit: must be a whole number from 1 to 1000"),
        ("GET", "/v1/batches?limit=1000", None, "limit: must be a whole number from 1 to 100"),
        ("GET", "/v1/messages/batches?limit=x", None, "limit: must be a whole number from 1 to 1000"),
        ("GET", "/v1/files?order=up", None, "order: must be one of 'asc', 'desc'"),
        (
            "POST",
            "/v1/batches",
            BATCH | {"completion_window": "1h"},
            "completion_window: is required, and must be '24h'",
        ),
        ("POST", "/v1/batches", {"endpoint": "/v1/embeddings"}, "input_file_id: is required, and must be a string"),
        ("POST", "/v1/batches", BATCH | {"metadata": {"a": 1}}, "metadata.a: must be a string"),
        ("POST", "/v1/batches", BATCH | {"foo": 1}, "foo: is unknown; use completion_window, endpoint"),
        (
            "POST",
            "/v1/batches",
            BATCH | {"output_expires_after": {"anchor": "created_at", "seconds": 1}},
            "output_expires_after.seconds: is required, and must be a whole number from 3600 to 2592000",
        ),
        (
            "POST",
            "/v1/uploads",
            {"bytes": 1, "filename": "", "mime_type": "x", "purpose": "batch"},
            "filename: is required, and must be a string with 1 to 512 characters",
        ),
    ],
)
def test_a_wrong_value_is_told_what_it_must_be(api: Any, method: str, path: str, body: Any, message: str) -> None:
    answer = api.http.request(method, path, json=body)
    assert answer.status_code == 400, answer.text
    assert message in answer.text
    assert not FOREIGN.search(answer.text)
