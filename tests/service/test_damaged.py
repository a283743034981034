"""Damaged and newer records behind the API: what its callers see of them, and what they may still do."""

import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.helpers.inbox import file_key
from tests.helpers.ledger import keys
from tests.service.test_api_native import PAIRS, bearer

BATCHES, MESSAGES, OPENAI = "/api/batches", "/v1/messages/batches", "/v1/batches"
TENANT = bearer("acme")
ANTHROPIC = TENANT | {"anthropic-version": "2023-06-01"}
LISTINGS = [(BATCHES, TENANT), (MESSAGES, ANTHROPIC), (OPENAI, TENANT)]
WAIT_S = 30.0
DAMAGES = {
    "torn": lambda data: data[: len(data) // 2],
    "zeroed": lambda data: b"\0" * len(data),
    "empty": lambda _: b"",
}


@pytest.fixture
def api(start_api: Any) -> Any:
    return start_api(BATCHFILE_API_KEYS=PAIRS)


def submit_file(http: httpx.Client) -> str:
    """A batch of a stored file, as OpenAI's clients make it; once it is planned."""
    body = {"model": "mistral", "messages": [{"role": "user", "content": "Hi."}]}
    line = json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body})
    upload = {"file": ("in.jsonl", line.encode())}
    file = http.post("/v1/files", data={"purpose": "batch"}, files=upload, headers=TENANT).json()
    wanted = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch_id: str = http.post(OPENAI, json=wanted, headers=TENANT).json()["id"]
    wait_for(http, batch_id, "open")
    return batch_id


def wait_for(http: httpx.Client, batch_id: str, state: str) -> dict[str, Any]:
    deadline = time.monotonic() + WAIT_S
    while (found := http.get(f"{BATCHES}/{batch_id}", headers=TENANT).json())["state"] != state:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return dict(found)


def damage(api: Any, key: str, how: str = "torn") -> None:
    path = Path(api.store) / key
    path.write_bytes(DAMAGES[how](path.read_bytes()))


def edit(api: Any, key: str, **fields: Any) -> bytes:
    path = Path(api.store) / key
    path.write_bytes(json.dumps(json.loads(path.read_bytes()) | fields).encode())
    return path.read_bytes()


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_batch_is_listed_as_damaged_among_the_others(api: Any, make_request: Any, how: str) -> None:
    good = api.submit("email", [make_request("a")], **TENANT)
    lost, lost_file = api.submit("email", [make_request("a")], **TENANT), submit_file(api.http)
    for batch_id in (lost, lost_file):
        damage(api, keys.batch_key(batch_id), how)
    pages = [api.http.get(path, headers=headers) for path, headers in LISTINGS]
    assert [page.status_code for page in pages] == [200, 200, 200]
    native, messages, openai = [{item["id"]: item for item in page.json()["data"]} for page in pages]
    assert {batch_id: item["state"] for batch_id, item in native.items()} == {
        good: "open",
        lost: "damaged",
        lost_file: "damaged",
    }
    assert "cancel or delete it" in native[lost]["detail"]
    assert abs(native[lost]["created_at"] - native[good]["created_at"]) < 10, "the index knows when"
    assert (messages[lost]["processing_status"], messages[lost]["results_url"]) == ("ended", None)
    assert (openai[lost_file]["status"], openai[lost_file]["errors"]["data"][0]["code"]) == ("failed", "damaged")
    told = "".join(page.text for page in pages)
    assert api.store not in told
    assert "batch.json" not in told
    assert api.http.get(BATCHES, headers=TENANT | {}, params={"after": lost}).json()["data"][0]["id"] == good
    assert [event["batch_id"] for event in api.events("batch.unreadable")].count(lost) == 1, (
        "said once, not at each look"
    )
    assert (
        keys.batch_key(lost) in api.events("batch.unreadable")[0]["error"] + api.events("batch.unreadable")[1]["error"]
    )


def test_a_damaged_batch_alone_is_seen_and_its_results_name_no_key(api: Any, make_request: Any) -> None:
    batch_id = api.submit("email", [make_request("a")], **TENANT)
    damage(api, keys.batch_key(batch_id))
    assert api.http.get(f"{BATCHES}/{batch_id}", headers=TENANT).json()["state"] == "damaged"
    for path in (f"{MESSAGES}/{batch_id}", f"{MESSAGES}/{batch_id}/results", f"{BATCHES}/{batch_id}/results"):
        answer = api.http.get(path, headers=TENANT)
        assert answer.status_code == 500
        assert "is damaged; cancel or delete it" in answer.json()["detail"]
        assert api.store not in answer.text
        assert "batch.json" not in answer.text


@pytest.mark.parametrize(("path", "headers"), [(BATCHES, TENANT), (MESSAGES, ANTHROPIC), (OPENAI, TENANT)])
def test_a_damaged_batch_is_canceled_and_deleted(api: Any, make_request: Any, path: str, headers: Any) -> None:
    def made() -> str:
        batch_id = submit_file(api.http) if path == OPENAI else api.submit("email", [make_request("a")], **TENANT)
        damage(api, keys.batch_key(batch_id), "zeroed")
        return batch_id

    batch_id = made()
    canceled = api.http.post(f"{path}/{batch_id}/cancel", headers=headers)
    assert canceled.status_code == 200, canceled.text
    seen = api.http.get(f"{BATCHES}/{batch_id}", headers=TENANT).json()
    assert (seen["state"], seen["reason"], seen["total"]) == ("ended", "canceled", 0)
    assert "was damaged when it was canceled" in seen["detail"]
    if path != OPENAI:  # which has no delete
        for one in (batch_id, made()):
            assert api.http.delete(f"{path}/{one}", headers=headers).status_code == 200
            assert api.http.get(f"{BATCHES}/{one}", headers=TENANT).status_code == 404
        assert api.http.get(BATCHES, headers=TENANT).json()["data"] == []


def test_a_damaged_batch_is_nobody_elses(api: Any, make_request: Any) -> None:
    batch_id = api.submit("email", [make_request("a")], **TENANT)
    damage(api, keys.batch_key(batch_id))
    before = (Path(api.store) / keys.batch_key(batch_id)).read_bytes()
    for method, suffix in (("GET", ""), ("GET", "/results"), ("POST", "/cancel"), ("DELETE", "")):
        assert api.http.request(method, f"{BATCHES}/{batch_id}{suffix}", headers=bearer("zeta")).status_code == 404
    assert api.http.get(BATCHES, headers=bearer("zeta")).json()["data"] == []
    assert (Path(api.store) / keys.batch_key(batch_id)).read_bytes() == before


def test_a_damaged_batch_that_the_index_lacks_is_unreadable_and_not_unknown(api: Any, make_request: Any) -> None:
    batch_id = api.submit("email", [make_request("a")], **TENANT)
    (entry,) = Path(api.store).glob(f"index/acme/*{batch_id}")
    entry.unlink()
    damage(api, keys.batch_key(batch_id))
    for method, suffix in (("GET", ""), ("GET", "/results"), ("POST", "/cancel"), ("DELETE", "")):
        answer = api.http.request(method, f"{BATCHES}/{batch_id}{suffix}", headers=TENANT)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert "The record of this batch cannot be read now; try again later." in answer.json()["detail"]
        assert "batch.json" not in answer.text


@pytest.mark.parametrize("how", DAMAGES)
def test_a_batch_with_a_damaged_shard_record_is_listed_canceled_and_deleted(
    api: Any, make_request: Any, how: str
) -> None:
    batch_id = api.submit("email", [make_request("a")], **TENANT)
    (Path(api.store) / keys.shards_prefix(batch_id, "mistral")).mkdir(parents=True)
    (Path(api.store) / keys.shard_key(batch_id, "mistral", 0)).write_bytes(b"")
    damage(api, keys.shard_key(batch_id, "mistral", 0), how)
    for path, headers in LISTINGS:
        assert api.http.get(path, headers=headers).status_code == 200
    assert api.http.post(f"{BATCHES}/{batch_id}/cancel", headers=TENANT).status_code == 200
    ended = wait_for(api.http, batch_id, "ended")
    assert (ended["reason"], ended["total"], ended["errored"]) == ("canceled", 1, 1)
    (result,) = api.http.get(f"{MESSAGES}/{batch_id}/results", headers=TENANT).json()["results"]
    assert result["error"]["type"] == "storage_error", "whatever was in it is lost, and that is said"
    assert api.http.delete(f"{BATCHES}/{batch_id}", headers=TENANT).status_code == 200


def test_a_batch_whose_plan_is_damaged_is_canceled_and_deleted(api: Any, make_request: Any) -> None:
    batch_id = api.submit("email", [make_request("a")], **TENANT)
    (plan,) = Path(api.store).glob(keys.plan_key(batch_id, "*"))
    plan.write_bytes(b"\0" * 99)
    assert api.http.get(BATCHES, headers=TENANT).status_code == 200
    assert api.http.post(f"{BATCHES}/{batch_id}/cancel", headers=TENANT).status_code == 200
    assert wait_for(api.http, batch_id, "ended")["reason"] == "canceled"
    assert api.http.delete(f"{BATCHES}/{batch_id}", headers=TENANT).status_code == 200


@pytest.mark.parametrize("newer", [{"version": 2}, {"version": 2, "state": "folded", "total": "many"}, {"folds": [1]}])
def test_a_record_of_a_newer_version_is_never_written_canceled_or_deleted(
    api: Any, make_request: Any, newer: dict[str, Any]
) -> None:
    batch_id = api.submit("email", [make_request("a")], **TENANT)
    key = keys.batch_key(batch_id)
    stored = edit(api, key, **newer)
    for path, headers in LISTINGS:
        assert api.http.get(path, headers=headers).status_code == 200
    for method, suffix in (("POST", "/cancel"), ("DELETE", "")):
        answer = api.http.request(method, f"{BATCHES}/{batch_id}{suffix}", headers=TENANT)
        if (method, newer) == ("DELETE", {"folds": [1]}):
            assert answer.status_code == 400, "an open one cannot be deleted, whoever wrote it"
            continue
        assert answer.status_code == 503
        assert "upgrade this process" in answer.json()["detail"]
        assert "batch.json" not in answer.text
    assert (Path(api.store) / key).read_bytes() == stored


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_file_hides_no_other_and_can_be_removed(api: Any, how: str) -> None:
    made_of = [api.http.get(f"{OPENAI}/{submit_file(api.http)}", headers=TENANT).json() for _ in range(3)]
    old, lost, new = (batch["input_file_id"] for batch in made_of)
    damage(api, file_key("acme", lost), how)
    page = api.http.get("/v1/files", headers=TENANT)
    assert page.status_code == 200, page.text
    assert [item["id"] for item in page.json()["data"]] == [new, old]
    assert api.http.delete(f"/v1/files/{lost}", headers=TENANT).status_code == 200
    assert api.http.get(f"/v1/files/{lost}", headers=TENANT).status_code == 404
