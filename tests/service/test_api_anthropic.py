"""Two dialects on one path: who is answered how, and what Anthropic's says on the wire."""

import hashlib
import json
import os
import re
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from anthropic.types.messages import MessageBatchExpiredResult, MessageBatchIndividualResponse

from tests.helpers.ledger import batches, ending
from tests.helpers.settings import load_settings
from tests.helpers.store import open_service_ledger

GOLDEN = Path(__file__).parents[1] / "golden" / "anthropic"
BATCHES = "/v1/messages/batches"
VERSION = {"anthropic-version": "2023-06-01"}
STAGE = {"batchfile-dialect": "stage"}
THEIRS = {"batchfile-dialect": "anthropic"}
ID = r"msgbatch_[0-9A-Za-z]{24}"


def message(custom_id: str, model: str = "mistral", **more: Any) -> dict[str, Any]:
    params = {"model": model, "max_tokens": 9, "messages": [{"role": "user", "content": "Hello there"}], **more}
    return {"custom_id": custom_id, "params": params}


def create(api: Any, *requests: dict[str, Any], **headers: str) -> str:
    answer = api.http.post(BATCHES, json={"requests": list(requests)}, headers=VERSION | headers)
    assert answer.status_code == 200, answer.text
    batch_id: str = answer.json()["id"]
    return batch_id


def types(api: Any, batch_id: str) -> list[str]:
    text = api.http.get(f"{BATCHES}/{batch_id}/results", headers=VERSION).text
    return [json.loads(line)["result"]["type"] for line in text.split("\n")[:-1]]


@pytest.mark.parametrize(
    "headers",
    [
        {"anthropic-version": "2023-06-01, 2023-06-01"},
        {"anthropic-beta": "message-batches-2024-09-24"},
        {"user-agent": "AsyncAnthropic/Python 2.12.0"},
        THEIRS,
    ],
    ids=["version", "beta", "agent", "asked"],
)
def test_each_sign_of_an_anthropic_client_is_enough(api: Any, headers: dict[str, str]) -> None:
    made = api.http.post(BATCHES, json={"requests": [message("a")]}, headers=headers)
    assert re.fullmatch(ID, made.json()["id"])
    refused = api.http.post(BATCHES, json={"requests": []}, headers=headers)
    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")


def test_without_a_sign_a_create_is_the_stage_contracts(api: Any) -> None:
    answer = api.http.post(BATCHES, json={"requests": [message("a")]})
    assert (answer.status_code, list(answer.json())) == (400, ["detail"])
    assert "stage: is missing" in answer.json()["detail"]


def test_a_stage_in_the_body_stands_over_the_headers_but_not_over_what_was_asked(api: Any, make_request: Any) -> None:
    document = {"stage": "email", "requests": [make_request("any id/at all")]}
    made = api.http.post(BATCHES, json=document, headers=VERSION)
    assert list(made.json()) == ["id"]
    assert re.fullmatch(r"batch_[0-9a-f]{12}", made.json()["id"])
    asked = api.http.post(BATCHES, json=document, headers=THEIRS).json()
    assert asked["type"] == "message_batch"
    assert re.fullmatch(r"batch_[0-9a-f]{12}", asked["id"])
    stage = api.http.post(BATCHES, json={"requests": [message("a")]}, headers=VERSION | STAGE)
    assert stage.json()["detail"].startswith("stage: is missing")


def test_every_batch_can_be_read_in_both_dialects(api: Any, make_request: Any) -> None:
    ids = {"stage": api.submit("email", [make_request("a")]), "anthropic": create(api, message("a"))}
    for dialect, batch_id in ids.items():
        path = f"{BATCHES}/{batch_id}"
        early = api.http.get(f"{path}/results", headers=VERSION)
        assert (early.status_code, early.json()["error"]["type"]) == (404, "not_found_error")
        assert api.http.get(f"{path}/results", headers=STAGE).json() == {"detail": "Batch not yet complete"}
        api.work(batch_id)
        stage = api.http.get(path, headers=STAGE).json()
        assert list(stage) == ["id", "processing_status", "counts", "created_at", "updated_at"]
        theirs = api.http.get(path, headers=VERSION).json()
        assert theirs["type"] == "message_batch"
        assert (theirs["counts"], theirs["updated_at"]) == (stage["counts"], stage["updated_at"])
        assert api.http.get(path).json() == (stage if dialect == "stage" else theirs)  # by its id
        document = api.http.get(f"{path}/results", headers=STAGE).json()["results"]
        line = json.loads(api.http.get(f"{path}/results", headers=VERSION).text)
        assert line["result"]["message"]["content"][0]["text"] == document[0]["message"]["content"][0]["text"]


def test_a_key_may_be_set_to_a_dialect(start_api: Callable[..., Any]) -> None:
    digest = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("old", "new")}
    api = start_api(BATCHFILE_API_KEYS=f"acme:{digest['old']}:stage,acme:{digest['new']}:anthropic")
    old, new = {"x-api-key": "old"}, {"x-api-key": "new"}
    batch_id = api.http.post(BATCHES, json={"requests": [message("a")]}, headers=new).json()["id"]
    assert list(api.http.get(f"{BATCHES}/{batch_id}", headers=VERSION | old).json())[1] == "processing_status"
    assert api.http.get(f"{BATCHES}/{batch_id}", headers=VERSION | old | THEIRS).json()["type"] == "message_batch"


def test_only_the_envelope_refuses_and_an_unknown_model_is_an_errored_line(api: Any) -> None:
    batch_id = create(api, message("good"), message("bad", model="gpt"), message("temperature", temperature=9))
    api.work(batch_id)
    assert types(api, batch_id) == ["succeeded", "errored", "errored"]
    # Also where no request can run at all.
    lost = create(api, message("bad", model="gpt"))
    ledger = open_service_ledger(api.store, load_settings())
    ending.finish(ledger, lost, runner="test")
    assert types(api, lost) == ["errored"]
    hint = {**message("a"), "metadata": {"model_hint": "gpt"}}
    answer = api.http.post(BATCHES, json={"requests": [hint]}, headers=VERSION)
    assert answer.status_code == 400
    answer = api.http.post(BATCHES, json={"requests": [message("a")], "model_hint": "mistral"}, headers=VERSION)
    assert (answer.status_code, "model_hint" in answer.json()["error"]["message"]) == (400, True)


@pytest.mark.parametrize("body", [b"", b"{}", b"[]"])
def test_who_speaks_anthropics_dialect_is_told_of_no_stage(api: Any, body: bytes) -> None:
    answer = api.http.post("/v1/messages/batches", content=body, headers=VERSION)
    assert answer.status_code == 400
    assert '{"requests": [{"custom_id": "a", "params": {...}}]}' in answer.json()["error"]["message"]


def test_requests_may_come_as_lines_without_a_stage(api: Any) -> None:
    body = "\n".join(json.dumps(message(f"r{n}")) for n in range(3))
    made = api.http.post(BATCHES, content=body, headers=VERSION | {"content-type": "application/x-ndjson"})
    assert made.json()["request_counts"]["processing"] == 3


def test_each_request_goes_to_the_pool_of_its_model(api: Any) -> None:
    batch_id = create(api, message("a"), message("b", model="meta-llama/Meta-Llama-3-70B-Instruct"))
    api.work(batch_id, "mistral", "llama-70b")
    lines = api.http.get(f"{BATCHES}/{batch_id}/results", headers=VERSION).text.split("\n")[:-1]
    assert [json.loads(line)["result"]["message"]["model"] for line in lines] == ["echo-mistral", "echo-llama-70b"]


def test_expired_requests_say_so(api: Any) -> None:
    batch_id = create(api, message("a"), message("b", model="gpt"))
    batches.end(open_service_ledger(api.store, load_settings()), batch_id, "expired")
    before = api.http.get(f"{BATCHES}/{batch_id}", headers=VERSION).json()
    assert (before["processing_status"], before["cancel_initiated_at"]) == ("in_progress", None)
    assert before["request_counts"] == {"processing": 2, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
    api.work(batch_id)
    after = api.http.get(f"{BATCHES}/{batch_id}", headers=VERSION).json()
    assert after["request_counts"] == {"processing": 0, "succeeded": 0, "errored": 1, "canceled": 0, "expired": 1}
    assert types(api, batch_id) == ["expired", "errored"]
    lines = api.http.get(f"{BATCHES}/{batch_id}/results", headers=VERSION).text.splitlines()
    found = [MessageBatchIndividualResponse.model_validate_json(line, strict=True) for line in lines]
    assert isinstance(found[0].result, MessageBatchExpiredResult)


def test_files_are_no_part_of_what_anthropics_clients_get(api: Any) -> None:
    for method, path in (
        ("GET", "/v1/files"),
        ("POST", "/v1/files?beta=true"),
        ("GET", "/v1/files/file_1/content"),
        ("POST", "/v1/uploads"),
    ):
        answer = api.http.request(method, path, headers=VERSION)
        assert answer.status_code == 404
        error = answer.json()
        assert (error["type"], error["error"]["type"]) == ("error", "not_found_error")
        assert "OpenAI's API format" in error["error"]["message"]
    assert api.http.get("/v1/files").status_code == 200


def test_results_urls_lead_to_where_the_caller_came_from(api: Any, start_api: Callable[..., Any]) -> None:
    batch_id = create(api, message("a"))
    api.work(batch_id)
    path = f"{BATCHES}/{batch_id}"
    forwarded = {"x-forwarded-proto": "https", "x-forwarded-host": "api.example, inner"}

    def url(service: Any, **headers: str) -> str:
        found: str = service.http.get(path, headers=VERSION | headers).json()["results_url"]
        return found.removesuffix(f"{path}/results")

    assert url(api, **forwarded) == api.url
    assert url(api, host="batch.internal:8443") == "http://batch.internal:8443"
    assert api.http.get(path, headers={"host": "evil{x}"}).status_code == 400
    trusting = start_api(api.store, BATCHFILE_API__TRUST_FORWARDED="1")
    assert url(trusting, **forwarded) == "https://api.example"
    assert url(trusting, **{"x-forwarded-host": "evil{x}"}) == ""
    public = start_api(api.store, BATCHFILE_API__PUBLIC_URL="https://gpu.example/batch/")
    assert url(public, **forwarded) == "https://gpu.example/batch"


def test_every_answer_bears_its_id(api: Any) -> None:
    for path in ("/healthz", BATCHES, f"{BATCHES}/nothing", "/v1/nothing", "/api/batches"):
        headers = api.http.get(path, headers=VERSION).headers
        assert headers["request-id"] == headers["x-request-id"]
    mine = api.http.get(f"{BATCHES}/nothing", headers=VERSION | {"x-request-id": "mine-1"})
    assert mine.headers["request-id"] == mine.json()["request_id"] == "mine-1"


def test_the_recorded_exchanges_are_what_the_service_says(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHFILE_ECHO_TOOL_INPUT", '{"place": "Zürich"}')
    monkeypatch.setenv("BATCHFILE_ECHO_THINKING", "Hm.")
    ids = {"x": "", "y": ""}

    def ask(name: str) -> Any:
        file = GOLDEN / f"{name}.json"
        golden = json.loads(file.read_text())
        asked, expected = golden["request"], golden["response"]
        path = asked["path"]
        for letter, batch_id in ids.items():
            path = path.replace(f"msgbatch_0123456789abcdefghijklm{letter}", batch_id)
        answer = api.http.request(asked["method"], path, headers=asked["headers"], json=asked.get("body"))
        assert answer.status_code == expected["status"], (name, answer.text)
        kind = "lines" if "lines" in expected else "body"
        found = [json.loads(line) for line in answer.text.split("\n")[:-1]] if kind == "lines" else answer.json()
        if os.environ.get("RECORD_GOLDEN"):
            expected[kind] = renewed(found, expected[kind])
            file.write_text(json.dumps(golden, indent=2) + "\n")
        assert shape(found) == shape(expected[kind]), name
        return found

    ids["x"] = ask("create")["id"]
    ask("retrieve_in_progress")
    api.work(ids["x"])
    ask("retrieve_ended")
    errors = [line["result"]["error"] for line in ask("results") if line["result"]["type"] == "errored"]
    golden = json.loads((GOLDEN / "results.json").read_text())["response"]["lines"]
    assert errors == [line["result"]["error"] for line in golden if line["result"]["type"] == "errored"]
    ask("cancel_ended")
    other, ids["x"] = ids["x"], create(api, message("canceled"))
    ask("delete_unfinished")  # once it is canceled, it may end at any time
    ask("cancel")
    api.work(ids["x"])
    ask("results_canceled")
    ask("list")
    ids["x"] = other
    ask("delete")
    ask("not_found")
    ask("bad_custom_id")
    ids["x"] = ask("tools_create")["id"]
    api.work(ids["x"])
    contents = [line["result"].get("message", {}).get("content") for line in ask("tools_results")]
    recorded = json.loads((GOLDEN / "tools_results.json").read_text())["response"]["lines"]
    assert contents == [line["result"].get("message", {}).get("content") for line in recorded]
    ids["x"] = ask("schemas_create")["id"]
    api.work(ids["x"])
    fits, does_not = (line["result"] for line in ask("schemas_results"))
    recorded = json.loads((GOLDEN / "schemas_results.json").read_text())["response"]["lines"]
    assert fits["message"]["content"] == recorded[0]["result"]["message"]["content"]
    assert does_not == recorded[1]["result"]


def renewed(found: Any, before: Any) -> Any:
    """What was found, with the ids, times and addresses that were recorded before."""
    if isinstance(found, dict):
        return {key: renewed(value, (before or {}).get(key)) for key, value in found.items()}
    if isinstance(found, list):
        return [renewed(value, old) for value, old in zip_longest(found, (before or [])[: len(found)])]
    return before if shape(found) == shape(before) != "text" else found


def shape(value: Any) -> Any:
    """Keys and kinds of values; ids, times and addresses by their form."""
    if isinstance(value, dict):
        return {key: shape(one) for key, one in value.items()}
    if isinstance(value, list):
        return [shape(one) for one in value]
    if isinstance(value, str):
        forms = {
            "id": ID,
            "message id": r"msg_[0-9A-Za-z]{24}_\d+",
            "request id": "req_[0-9a-f]{24}",
            "time": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ",
            "url": rf"http://[^/]+{BATCHES}/{ID}/results",
        }
        return next((name for name, form in forms.items() if re.fullmatch(form, value)), "text")
    return type(value).__name__
