"""Nothing that a request says is ignored in silence; HEAD works wherever GET does."""

import json
import re
from typing import Any

import pytest

STAGE, OPENAI, NATIVE = "/v1/messages/batches", "/v1/batches", "/api/batches"
ANTHROPIC = {"anthropic-version": "2023-06-01"}


def creates(request: Any) -> list[tuple[str, dict[str, str], Any]]:
    line = {"custom_id": "a", "params": {"model": "mistral", **request["params"]}}
    return [
        (STAGE, {}, {"stage": "email", "requests": [request]}),
        (NATIVE, {}, {"stage": "email", "requests": [request]}),
        (STAGE, ANTHROPIC, {"requests": [line]}),
        (OPENAI, {}, {"input_file_id": "file-0", "endpoint": "/v1/chat/completions", "completion_window": "24h"}),
    ]


def test_an_empty_idempotency_key_is_rejected_everywhere(api: Any, make_request: Any) -> None:
    batch_id = api.submit("email", [make_request("a")])
    before = len(api.http.get(NATIVE).json()["data"])
    wanted = [("POST", path, more, body) for path, more, body in creates(make_request("a"))]
    wanted += [("POST", f"{NATIVE}/{batch_id}/retry", {}, None), ("POST", f"{NATIVE}/{batch_id}/cancel", {}, None)]
    for method, path, more, body in wanted:
        answer = api.http.request(method, path, json=body, headers=more | {"idempotency-key": ""})
        assert answer.status_code == 400, path
        assert "Idempotency-Key: is empty" in answer.text
    assert len(api.http.get(NATIVE).json()["data"]) == before


@pytest.mark.parametrize("key", [b"", b" ", b" \t "])
def test_a_blank_idempotency_key_is_an_empty_one(api: Any, raw: Any, key: bytes) -> None:
    head = b"POST /api/batches HTTP/1.1\r\nHost: x\r\nConnection: close\r\nIdempotency-Key:" + key
    answer = raw(api, head + b"\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
    assert answer.status == 400
    assert b"Idempotency-Key: is empty" in answer.body


def test_unknown_query_parameters_are_rejected_on_our_own_routes(api: Any, make_request: Any) -> None:
    batch_id = api.submit("email", [make_request("a")])
    body = {"stage": "email", "requests": [make_request("a")]}
    before = len(api.http.get(NATIVE).json()["data"])
    routes = [
        ("GET", NATIVE, "use after, before, id, limit, since, stage, state"),
        ("POST", NATIVE, "use metadata, pool, priority, reuse, stage, strict"),
        ("GET", f"{NATIVE}/{batch_id}", "it has none"),
        ("GET", f"{NATIVE}/{batch_id}/results", "use format, live"),
        ("POST", f"{NATIVE}/{batch_id}/cancel", "it has none"),
        ("POST", f"{NATIVE}/{batch_id}/retry", "it has none"),
        ("DELETE", f"{NATIVE}/{batch_id}", "use now"),
        ("GET", "/api/pools", "it has none"),
        ("GET", "/api/pools/mistral/scale", "it has none"),
        ("GET", "/api/runners", "use pool"),
        ("POST", STAGE, "use metadata, pool, priority, reuse, stage, strict"),
    ]
    for method, path, takes in routes:
        sent = body if method == "POST" and path in {NATIVE, STAGE} else None
        answer = api.http.request(method, path, params={"priorty": "0"}, json=sent)
        assert answer.status_code == 400, path
        assert "'priorty' is not a query parameter of " in answer.json()["detail"]
        assert takes in answer.json()["detail"]
        assert api.http.head(path, params={"priorty": "0"}).status_code == 400 or method != "GET"
    assert api.http.post(f"{NATIVE}?strict=true&strict=false", json=body).status_code == 400
    assert len(api.http.get(NATIVE).json()["data"]) == before
    assert api.http.get(f"{NATIVE}/{batch_id}").json()["state"] == "open"
    assert api.http.post(f"{NATIVE}?metadata=a=1&metadata=b=2", json=body).json()["metadata"] == {"a": "1", "b": "2"}


def test_other_clients_may_send_parameters_of_their_own(api: Any, make_request: Any) -> None:
    batch_id = api.submit("email", [make_request("a")])
    for path, headers in ((STAGE, ANTHROPIC), (f"{STAGE}/{batch_id}", ANTHROPIC), (OPENAI, {}), ("/v1/models", {})):
        assert api.http.get(path, params={"beta": "true"}, headers=headers).status_code == 200, path
    (_, _, body) = creates(make_request("a"))[2]
    assert api.http.post(f"{STAGE}?beta=true", json=body, headers=ANTHROPIC).status_code == 200


def test_head_is_answered_as_get_without_its_body(api: Any, make_request: Any) -> None:
    batch_id = api.submit("email", [make_request("a"), make_request("b")])
    api.work(batch_id)
    document = api.http.get("/openapi.json").json()
    paths = [path for path, methods in document["paths"].items() if "get" in methods]
    assert len(paths) > 15
    assert not any("head" in methods for methods in document["paths"].values())
    for path in [*paths, "/metrics", "/docs", "/openapi.json"]:
        url = re.sub(r"\{.*?\}", lambda found: {"{batch_id}": batch_id, "{pool}": "mistral"}.get(found[0], "x"), path)
        for headers in ({}, ANTHROPIC, {"accept-encoding": "identity"}):
            get, head = (api.http.request(method, url, headers=headers) for method in ("GET", "HEAD"))
            assert (head.status_code, head.content) == (get.status_code, b""), url
            assert head.headers.get("content-type") == get.headers.get("content-type"), url
            length = head.headers.get("content-length")
            assert length in {None, get.headers.get("content-length")} or "/metrics" in url, url
            assert head.headers.get("etag") == get.headers.get("etag")
    assert "HEAD" in api.http.options(NATIVE).headers["allow"]
    assert api.http.head(f"{NATIVE}/batch_000000000000").status_code == 404


def test_head_of_files_and_of_results(api: Any, make_request: Any) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}
    line |= {"body": {"model": "mistral", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}}
    data = json.dumps(line).encode() + b"\n"
    file = api.http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", data)}).json()
    for path in ("/v1/files", f"/v1/files/{file['id']}", f"/v1/files/{file['id']}/content"):
        get, head = (api.http.request(method, path) for method in ("GET", "HEAD"))
        assert (head.status_code, head.content) == (get.status_code, b"") == (200, b"")
    plain = {"accept-encoding": "identity"}
    content = api.http.head(f"/v1/files/{file['id']}/content", headers=plain)
    assert content.headers["content-length"] == str(len(data))


@pytest.mark.parametrize(
    ("path", "document", "param"),
    [
        ("/v1/batches", '{"input_file_id":"a","input_file_id":"b"}', "input_file_id"),
        ("/v1/batches", '{"input_file_id":"a","metadata":{"x":"1","\\u0078":"2"}}', "metadata.x"),
        ("/v1/uploads", '{"bytes":1,"filename":"a","filename":"b"}', "filename"),
        ("/v1/uploads/upload_1/complete", '{"part_ids":[],"part_ids":["a"]}', "part_ids"),
    ],
)
def test_a_key_given_twice_is_rejected_in_every_document(api: Any, path: str, document: str, param: str) -> None:
    answer = api.http.post(path, content=document, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["message"], error["param"]) == (f"{param}: is given twice; keep one of them", param)


def test_a_document_in_utf16_is_named(api: Any) -> None:
    answer = api.http.post(
        "/v1/batches", content='{"a":1}'.encode("utf-16"), headers={"content-type": "application/json"}
    )
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        400,
        "the body: is UTF-16 text; save it as UTF-8",
    )
