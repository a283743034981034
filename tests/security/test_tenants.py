"""Every route that the service has, asked by one tenant for what belongs to another: it looks like nothing."""

import hashlib
import json
import re
from typing import Any

import pytest

PLACES = re.compile(r"\{(\w+)\}")
KEYS = {"acme": "bf_acme-key", "zeta": "bf_zeta-key"}
PAIRS = ",".join(f"{tenant}:{hashlib.sha256(key.encode()).hexdigest()}" for tenant, key in KEYS.items())
LINE = '{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": %s}'
BODY = json.dumps({"model": "mistral", "messages": [{"role": "user", "content": "secret-text"}]})
# What a route wants before it looks for anything.
BODIES: dict[str, dict[str, Any]] = {
    "/v1/uploads/{upload_id}/complete": {"json": {"part_ids": ["part_" + "0" * 32]}},
    "/v1/uploads/{upload_id}/parts": {"files": {"data": b"x"}},
}


def of(tenant: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[tenant]}"}


@pytest.fixture(scope="module")
def both(serve_api: Any) -> Any:
    return serve_api(BATCHFILE_API_KEYS=PAIRS)


@pytest.fixture(scope="module")
def ids(both: Any, make_request: Any) -> dict[str, list[str]]:
    """What acme has, by the name that a path gives it; of each kind one that is open and one that is over."""
    http, mine = both.http, of("acme")
    open_id, over_id = (both.submit("email", [make_request("secret")], **mine) for _ in range(2))
    file = http.post("/v1/files", headers=mine, data={"purpose": "batch"}, files={"file": (LINE % BODY).encode()})
    wanted = {"input_file_id": file.json()["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    of_file = http.post("/v1/batches", headers=mine, json=wanted).json()["id"]
    announced = {"filename": "f", "mime_type": "application/jsonl", "purpose": "batch", "bytes": 5}
    upload = http.post("/v1/uploads", headers=mine, json=announced).json()["id"]
    both.work(over_id)
    both.work(of_file)
    output = http.get(f"/v1/batches/{of_file}", headers=mine).json()["output_file_id"]
    assert output
    return {
        "batch_id": [open_id, over_id, of_file],
        "file_id": [file.json()["id"], output],
        "upload_id": [upload],
    }


UNKNOWN = {
    "batch_id": ["batch_000000000000", "batch_" + "0" * 32],
    "file_id": ["file-" + "0" * 32, f"file-{'0' * 32}-output"],
    "upload_id": ["upload_" + "0" * 32],
}


def test_every_route_says_of_another_tenants_id_what_it_says_of_none(both: Any, ids: dict[str, list[str]]) -> None:
    """The routes come from the OpenAPI document, so that a new one is tested too."""
    document = both.http.get("/openapi.json").json()
    known = {**ids, "pool": ["mistral"], "model_id": ["mistral"]}
    num_asked = 0
    for path, methods in document["paths"].items():
        places = PLACES.findall(path)
        assert set(places) <= set(known), f"{path}: say here what belongs to a tenant"
        if not places or places[0] not in ids:
            continue
        for method in methods:
            more = BODIES.get(path, {})

            def ask(one: str, method: str = method, path: str = path, more: dict[str, Any] = more) -> tuple[int, str]:
                url = PLACES.sub(one, path)
                answer = both.http.request(method.upper(), url, headers=of("zeta"), **more)
                text = re.sub(r"req_[0-9a-f]+", "req", answer.text)
                return answer.status_code, text.replace(one, "ID")

            (nothing,) = {ask(one) for one in UNKNOWN[places[0]]}
            assert nothing[0] == 404, (method, path, nothing)
            for one in ids[places[0]]:
                assert ask(one) == nothing, (method, path, one)
                num_asked += 1
    assert num_asked >= 40


def test_nothing_of_another_tenant_is_listed_or_can_be_used(both: Any, ids: dict[str, list[str]]) -> None:
    theirs = of("zeta")
    lists = ["/api/batches", "/v1/batches", "/v1/messages/batches", "/v1/files"]
    for path in lists:
        assert both.http.get(path, headers=theirs).json()["data"] == []
    batch_id, file_id = ids["batch_id"][0], ids["file_id"][0]
    cursors = [f"/api/batches?after={batch_id}", f"/v1/batches?after={batch_id}"]
    cursors += [f"/v1/messages/batches?{side}={batch_id}" for side in ("after_id", "before_id")]
    for path in cursors:
        assert both.http.get(path, headers=theirs).status_code == 404
    after = both.http.get(f"/v1/files?after={file_id}", headers=theirs)
    assert after.json().get("data", []) == []
    for one in (*ids["file_id"], "file-" + "0" * 32):
        wanted = {"input_file_id": one, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        refused = both.http.post("/v1/batches", headers=theirs, json=wanted)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input_file_id")
    shown = [both.http.get(path, headers=theirs).text for path in ("/api/pools", "/api/runners", "/v1/models")]
    shown += [both.http.get(path).text for path in ("/metrics", "/healthz", "/openapi.json", "/docs")]
    for text in shown:
        assert not [one for several in ids.values() for one in several if one in text]
        assert not re.search("acme|zeta|secret-text", text)


def test_what_another_tenant_tried_has_changed_nothing(both: Any, ids: dict[str, list[str]]) -> None:
    mine = of("acme")
    states = [both.http.get(f"/api/batches/{one}", headers=mine).json()["state"] for one in ids["batch_id"]]
    assert states == ["open", "ended", "ended"]
    for one in ids["file_id"]:
        assert both.http.get(f"/v1/files/{one}/content", headers=mine).status_code == 200
    (upload,) = ids["upload_id"]
    assert both.http.post(f"/v1/uploads/{upload}/cancel", headers=mine).json()["status"] == "cancelled"


PATHS = ["/api/batches", "/v1/messages/batches", "/v1/batches", "/v1/files", "/v1/models", "/api/pools", "/api/runners"]


@pytest.mark.parametrize("path", PATHS)
def test_no_spelling_of_a_path_comes_in_without_a_key(both: Any, raw: Any, path: str) -> None:
    """Among them those that begin as the paths do that are open to anyone."""
    spelt = [path, "/" + path, path + "/", "/." + path, path.replace("/", "//"), path.replace("a", "%61"), path.upper()]
    spelt += [
        f"{start}{dots}{path}" for start in ("/docs", "/healthz") for dots in ("", "/..", "/%2e%2e", "//..", "/.")
    ]
    spelt += [f"{path}?/healthz", f"{path}#/docs", f"{path};/docs", f"http://x{path}", f"/docs/x{path}"]
    for target in spelt:
        answer = raw(both, f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert answer.status in {400, 401, 404}, (target, answer)
    posted = raw(
        both,
        f"POST /docs/..{path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode()[:-2]
        + b"Connection: close\r\n\r\n",
    )
    assert posted.status in {400, 401, 404, 405}


def test_a_key_is_taken_from_its_headers_and_exactly(both: Any) -> None:
    good = KEYS["acme"]
    digest = hashlib.sha256(good.encode()).hexdigest()
    refused: list[dict[str, str]] = [
        {},
        {"authorization": good},
        {"authorization": f"Basic {good}"},
        {"authorization": f"Bearer {digest}"},
        {"authorization": f"Bearer {good[:-1]}"},
        {"authorization": f"Bearer {good}x"},
        {"authorization": f"Bearer {good.upper()}"},
        {"authorization": f"Bearer {good},{good}"},
        {"authorization": "Bearer wrong", "x-api-key": "wrong"},
        {"authorization": f"Basic {good}", "x-api-key": "wrong"},
        {"x-api-key": digest},
        {"x-api-key": ""},
        {"cookie": f"x-api-key={good}"},
    ]
    for headers in refused:
        assert both.http.get("/api/batches", headers=headers).status_code == 401, headers
    assert both.http.get(f"/api/batches?api_key={good}&x-api-key={good}").status_code == 401
    for headers in (
        {"authorization": f"bearer {good}"},
        {"authorization": f"Bearer {good}", "x-api-key": "wrong"},
        {"authorization": "Bearer of-another-service", "x-api-key": good},
        {"authorization": "Basic eDp5", "x-api-key": good},
    ):
        assert both.http.get("/api/batches", headers=headers).status_code == 200, headers
    assert good not in both.log.read_text()
    assert digest not in both.log.read_text()
