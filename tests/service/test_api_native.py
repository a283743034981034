"""The native operations: list, cancel, delete, files, pools; keys, tenants and limits; a store that is down."""

import gzip
import hashlib
import json
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from tests import warm

BATCHES = "/api/batches"
ROOT = Path(__file__).parents[2]
KEYS = {"acme": "bf_acme-key", "zeta": "bf_zeta-key"}
PAIRS = ",".join(f"{tenant}:{hashlib.sha256(key.encode()).hexdigest()}" for tenant, key in KEYS.items())


def bearer(tenant: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[tenant]}"}


def test_batches_are_listed_newest_first_in_pages(start_api: Any, make_request: Any) -> None:
    api = start_api()
    ids = [api.submit("email", [make_request("a")]) for _ in range(5)]
    found: list[str] = []
    after: dict[str, Any] = {}
    while True:
        page = api.http.get(BATCHES, params={"limit": 2, **after}).json()
        found += [item["id"] for item in page["data"]]
        if not page["has_more"]:
            break
        after = {"after": found[-1]}
    assert found == ids[::-1]
    assert api.http.get(BATCHES, params={"limit": 0}).status_code == 400
    assert api.http.get(BATCHES, params={"after": "batch_000000000000"}).status_code == 404


def test_a_canceled_batch_ends_and_keeps_what_is_finished(api: Any, make_request: Any) -> None:
    batch_id = api.submit("email", [make_request(str(number)) for number in range(3)])
    assert api.http.delete(f"{BATCHES}/{batch_id}").status_code == 400
    canceled = api.http.post(f"{BATCHES}/{batch_id}/cancel").json()
    assert canceled["state"] in {"ending", "ended"}
    # Nobody works on it: the API ends it by itself.
    deadline = time.monotonic() + 30
    while api.http.get(f"{BATCHES}/{batch_id}").json()["state"] != "ended" and time.monotonic() < deadline:
        time.sleep(0.05)
    ended = api.http.get(f"{BATCHES}/{batch_id}").json()
    assert (ended["state"], ended["reason"], ended["canceled"]) == ("ended", "canceled", 3)
    stage = api.http.get(f"/v1/messages/batches/{batch_id}").json()
    assert stage["counts"] == {"total": 3, "succeeded": 0, "errored": 3, "pending": 0}
    results = api.http.get(f"/v1/messages/batches/{batch_id}/results").json()["results"]
    assert {(line["status"], line["error"]["type"]) for line in results} == {("errored", "canceled")}
    again = api.http.post(f"{BATCHES}/{batch_id}/cancel").json()
    assert again == ended


def test_a_deleted_batch_is_not_found(api: Any, make_request: Any) -> None:
    batch_id = api.submit("email", [make_request("a")])
    api.work(batch_id)
    assert api.http.delete(f"{BATCHES}/{batch_id}").json() == {"id": batch_id, "deleted": True}
    for path in (f"{BATCHES}/{batch_id}", f"{BATCHES}/{batch_id}/results", f"/v1/messages/batches/{batch_id}"):
        assert api.http.get(path).status_code == 404
    assert api.http.delete(f"{BATCHES}/{batch_id}").status_code == 404
    assert batch_id not in [item["id"] for item in api.http.get(BATCHES).json()["data"]]


def test_a_results_file_is_served_whole_in_ranges_and_packed(api: Any, make_request: Any) -> None:
    batch_id = api.submit("email", [make_request(f"r{number}") for number in range(50)])
    api.work(batch_id)
    url = f"{BATCHES}/{batch_id}/results"
    plain = {"accept-encoding": "identity"}
    whole = api.http.get(url, headers=plain)
    size = len(whole.content)
    assert whole.headers["content-length"] == str(size)
    assert [json.loads(line)["custom_id"] for line in whole.text.splitlines()] == [f"r{n}" for n in range(50)]
    head = api.http.head(url, headers=plain)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(size))
    for asked, start, end in (("bytes=0-9", 0, 10), ("bytes=100-", 100, size), ("bytes=-7", size - 7, size)):
        part = api.http.get(url, headers=plain | {"range": asked})
        assert part.status_code == 206
        assert part.content == whole.content[start:end]
        assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
    beyond = api.http.get(url, headers={"range": f"bytes={size}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{size}")
    assert api.http.get(url, headers={"if-none-match": whole.headers["etag"]}).status_code == 304
    with api.http.stream("GET", url, headers={"accept-encoding": "gzip"}) as packed:
        assert gzip.decompress(b"".join(packed.iter_raw())) == whole.content
    # Who has the beginning of the packed file is not sent the rest of the plain one.
    etag, packed_etag = whole.headers["etag"], packed.headers["etag"]
    for known, status in ((etag, 206), (packed_etag, 200)):
        assert api.http.get(url, headers=plain | {"range": "bytes=9-", "if-range": known}).status_code == status
    for known, status in ((packed_etag, 304), (f'"other", W/{etag}', 304), ("*", 304), ('"other"', 200)):
        assert api.http.get(url, headers=plain | {"if-none-match": known}).status_code == status


def test_the_requests_without_an_answer_come_back_ready_to_run_again(api: Any, make_request: Any) -> None:
    bad = {"custom_id": "bad", "params": {"messages": []}}
    batch_id = api.submit("email", [make_request("good"), bad])
    api.work(batch_id)
    lines = api.http.get(f"{BATCHES}/{batch_id}/errors").text.splitlines()
    assert [json.loads(line) for line in lines] == [bad]
    (why,) = map(json.loads, api.http.get(f"{BATCHES}/{batch_id}/reasons").text.splitlines())
    assert (why["line"], why["custom_id"], why["status"]) == (2, "bad", "errored")
    status = api.http.get(f"{BATCHES}/{batch_id}").json()
    assert (status["errored"], status["rejected"]) == (1, 1)
    (group,) = status["failures"]
    assert group == {
        "type": "invalid_request_error",
        "message": why["message"],
        "requests": 1,
        "line": 2,
        "custom_id": "bad",
        "http_status": None,
        "example": why["message"],
        "advice": "Fix the request as the message says, and run it again.",
    }
    good = api.submit("email", [make_request("good")])
    api.work(good)
    assert api.http.get(f"{BATCHES}/{good}/reasons").status_code == 404


def test_results_can_be_followed_as_they_land(api: Any, make_request: Any) -> None:
    batch_id = api.submit("subject", [make_request(f"r{number}") for number in range(100)])
    found: list[str] = []

    def follow() -> None:
        with httpx.stream("GET", f"{api.url}{BATCHES}/{batch_id}/results?live=true", timeout=60) as answer:
            found.extend(json.loads(line)["custom_id"] for line in answer.iter_lines())

    follower = threading.Thread(target=follow)
    follower.start()
    api.work(batch_id)
    follower.join(60)
    assert sorted(found) == sorted(f"r{number}" for number in range(100))


def test_pools_say_what_is_pending_and_who_is_there(start_api: Any, make_request: Any) -> None:
    api = start_api()
    waits = api.submit("email", [make_request(str(number)) for number in range(70)])
    for found in (api.http.get(f"{BATCHES}/{waits}").json(), api.http.get(BATCHES).json()["data"][0]):
        (waiting,) = found["waiting_for"]
        assert (waiting["pool"], waiting["cause"]) == ("mistral", "no_runner")
        assert waiting["message"].startswith("No live runner for pool mistral for ")
    api.submit("polish", [make_request("a", metadata={"model_hint": "mistral"}), make_request("b")])
    scale = api.http.get("/api/pools/mistral/scale").json()
    assert scale == {
        "pool": "mistral",
        "pending_shards": 4,
        "pending_requests": 71,
        "leased_shards": 0,
        "live_runners": 0,
    }
    pools = {pool["name"]: pool for pool in api.http.get("/api/pools").json()}
    assert (pools["llama-70b"]["pending_requests"], pools["llama-70b"]["open_batches"]) == (1, 1)
    assert pools["mistral"]["stages"] == ["subject", "email"]
    assert api.http.get("/api/runners").json() == []
    unknown = api.http.get("/api/pools/gpt/scale")
    assert unknown.status_code == 404
    assert "mistral" in unknown.json()["detail"]
    health = api.http.get("/healthz").json()
    assert list(health) == ["status", "storage", "pools", "timestamp"]
    assert (health["status"], health["storage"]) == ("degraded", True), "requests wait for a pool without a runner"
    assert health["pools"]["mistral"] == {"status": "down", "runners": 0}
    assert api.http.get("/ready").json() == {"ready": True}
    probes = [api.http.head(path) for path in ("/healthz", "/ready")]  # as some load balancers ask
    assert [(probe.status_code, probe.content) for probe in probes] == [(200, b""), (200, b"")]
    page = api.http.get("/metrics").text
    assert 'batchfile_pending_requests{pool="mistral"} 71.0' in page
    assert "batch_id" not in page
    assert not re.search("batch_[0-9a-f]{12}", page)


def test_the_document_and_its_page_need_nothing_from_elsewhere(api: Any) -> None:
    document = api.http.get("/openapi.json").json()
    assert "/v1/messages/batches" in document["paths"]
    page = api.http.get("/docs").text
    assert "/api/batches/{batch_id}/cancel" in page
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page


def test_the_document_and_its_page_are_built_once_and_not_sent_again_to_who_has_them(api: Any) -> None:
    for path in ("/docs", "/openapi.json"):
        first = api.http.get(path)
        assert api.http.get(path).content == first.content
        again = api.http.get(path, headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert first.headers["cache-control"] == "no-cache"
        head = api.http.head(path)
        assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", first.headers["etag"])


def test_a_tenant_sees_its_own_batches_only(start_api: Any, make_request: Any) -> None:
    api = start_api(BATCHFILE_API_KEYS=PAIRS)
    batch_id = api.submit("email", [make_request("a")], **bearer("acme"))
    path = f"/v1/messages/batches/{batch_id}"
    for headers in ({}, {"authorization": "Bearer nope"}, {"x-api-key": "nope"}, {"authorization": KEYS["acme"]}):
        answer = api.http.get(path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
    assert api.http.get(path, headers=bearer("acme")).status_code == 200
    assert api.http.get(path, headers={"x-api-key": KEYS["acme"]}).status_code == 200
    other = bearer("zeta")
    assert api.http.get(path, headers=other).json() == {"detail": "Batch not found"}
    for method, suffix in (("GET", ""), ("GET", "/results"), ("GET", "/errors"), ("POST", "/cancel"), ("DELETE", "")):
        assert api.http.request(method, f"{BATCHES}/{batch_id}{suffix}", headers=other).status_code == 404
    assert api.http.get(f"{BATCHES}/{batch_id}/results?live=1", headers=other).status_code == 404
    assert api.http.get(BATCHES, headers=other).json()["data"] == []
    assert len(api.http.get(BATCHES, headers=bearer("acme")).json()["data"]) == 1
    assert api.http.get("/healthz").status_code == 200
    assert api.http.get("/api/pools").status_code == 401
    # One tenant's idempotency key is not another's.
    same = {"idempotency-key": "k"}
    mine = api.submit("email", [make_request("a")], **bearer("acme"), **same)
    theirs = api.submit("email", [make_request("a")], **bearer("zeta"), **same)
    assert mine != theirs


def test_the_log_tells_the_keys_of_a_tenant_apart(start_api: Any) -> None:
    old, new = "bf_old-key", "bf_new-key"
    digests = [hashlib.sha256(key.encode()).hexdigest() for key in (old, new)]
    api = start_api(BATCHFILE_API_KEYS=f"acme:{digests[0]},acme:{digests[1]}::crm")
    for key in (old, new, "bf_wrong-key"):
        api.http.get("/api/pools", headers={"x-api-key": key})
    api.http.get("/healthz", headers={"x-api-key": old})
    while len(answered := [event for event in api.events("request.answered") if event["path"] != "/ready"]) < 4:
        time.sleep(0.05)  # an event is logged after its response
    # ... so the events of two requests may change places
    names = ("path", "status", "tenant", "key", "key_name")
    assert {tuple(event[name] for name in names) for event in answered[-4:]} == {
        ("/api/pools", 200, "acme", digests[0][:8], None),
        ("/api/pools", 200, "acme", digests[1][:8], "crm"),
        ("/api/pools", 401, None, None, None),
        ("/healthz", 200, None, None, None),
    }
    (reason,) = (event["reason"] for event in answered[-4:] if event["reason"])
    assert reason.startswith("The API key is missing or invalid")


def test_the_log_says_why_a_request_was_rejected_without_what_it_quotes(start_api: Any) -> None:
    api = start_api()
    api.http.get("/api/batches?limit=0")
    secret = {"custom_id": "a", "params": {"messages": "My secret.", "max_tokens": 3}}
    api.http.post("/v1/messages/batches", json={"stage": "emial", "requests": [secret]})
    while len(answered := [one for one in api.events("request.answered") if one["status"] >= 400]) < 2:
        time.sleep(0.05)
    assert {one["tenant"] for one in answered} == {"default"}
    reasons = " ".join(one["reason"] for one in answered)
    assert "limit: must be" in reasons
    assert "stage" in reasons
    assert "secret" not in reasons
    assert "emial" not in reasons


def test_a_tenant_has_a_limit_of_open_batches(start_api: Any, make_request: Any) -> None:
    api = start_api(BATCHFILE_API__OPEN_BATCHES_MAX="2")
    first = api.submit("email", [make_request("a")])
    second = api.submit("email", [make_request("a")], **{"idempotency-key": "k", "x-stainless-retry-count": "0"})
    again = api.submit("email", [make_request("a")], **{"idempotency-key": "k", "x-stainless-retry-count": "1"})
    assert again == second, "a batch that is there already needs no room"
    document = {"stage": "email", "requests": [make_request("a")]}
    refused = api.http.post("/v1/messages/batches", json=document)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0
    for more in ({"idempotency-key": "new"}, {"x-stainless-retry-count": "1"}):
        assert api.http.post("/v1/messages/batches", json=document, headers=more).status_code == 429
    api.work(first)
    deadline = time.monotonic() + 30
    while (status := api.http.post("/v1/messages/batches", json=document).status_code) == 429:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert status == 200


def test_a_repeated_retry_finds_its_batch_where_there_is_no_room(start_api: Any, make_request: Any) -> None:
    api = start_api(BATCHFILE_API__OPEN_BATCHES_MAX="1")
    failed = api.submit("email", [make_request("a") | {"params": {}}])
    api.work(failed)
    path, key = f"/api/batches/{failed}/retry", {"idempotency-key": "k"}
    made = api.http.post(path, headers=key)
    assert made.status_code == 200
    assert api.http.post(path, headers=key).json()["id"] == made.json()["id"]
    for more in ({}, {"idempotency-key": "new"}):
        assert api.http.post(path, headers=more).status_code == 429


def test_without_keys_it_stays_on_this_machine(tmp_path: Path) -> None:
    refused = warm.run("api", ["--host", "0.0.0.0", "--port", "0"], cwd=tmp_path, env=os.environ)
    assert refused.returncode == 2
    assert b"batchfile keys new" in refused.stderr
    assert b"BATCHFILE_ALLOW_ANONYMOUS" in refused.stderr


def test_a_port_that_is_taken_is_said(api: Any, tmp_path: Path) -> None:
    refused = warm.run("api", ["--port", str(api.port)], cwd=tmp_path, env=os.environ)
    assert refused.returncode == 1
    assert f"port {api.port}" in refused.stderr.decode()


def test_a_port_that_is_none_is_said(tmp_path: Path) -> None:
    refused = warm.run("api", ["--port", "65536"], cwd=tmp_path, env=os.environ)
    assert refused.returncode == 2
    assert b"'65536' is not a port" in refused.stderr


def test_a_store_that_is_down_is_503_and_nothing_is_half_created(
    start_api: Any, make_request: Any, tmp_path: Any
) -> None:
    api = start_api()
    batch_id = api.submit("email", [make_request("a")])
    store = tmp_path / "store"
    store.rename(tmp_path / "away")
    store.write_text("not a directory")
    document = {"stage": "email", "requests": [make_request("b")]}
    answers = [
        api.http.post("/v1/messages/batches", json=document, headers={"idempotency-key": "down"}),
        api.http.get(f"/v1/messages/batches/{batch_id}"),
        api.http.get("/ready"),
    ]
    for answer in answers:
        assert answer.status_code == 503, answer.text
        assert int(answer.headers["retry-after"]) > 0
    health = api.http.get("/healthz")
    assert (health.status_code, health.json()["status"], health.json()["storage"]) == (200, "degraded", False)
    assert "batchfile_store_up 0.0" in api.http.get("/metrics").text
    store.unlink()
    (tmp_path / "away").rename(store)
    assert api.http.get("/ready").status_code == 200
    assert len(api.http.get(BATCHES).json()["data"]) == 1
    again = api.http.post("/v1/messages/batches", json=document, headers={"idempotency-key": "down"})
    assert again.status_code == 200
    assert len(api.http.get(BATCHES).json()["data"]) == 2
