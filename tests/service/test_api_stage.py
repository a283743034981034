"""The stage contract as the Node app speaks it, against a real process."""

import gzip
import json
import re
from typing import Any

import pytest

from tests.helpers.lines import zstd

LINES = "application/x-ndjson"
BATCHES = "/v1/messages/batches"


def test_a_batch_goes_in_and_its_results_come_out_in_order(api: Any, make_request: Any) -> None:
    ids = [f"lead_{number}_subject" for number in range(40)] + ['quo"te\n\u2028🚀', "x" * 10_000]
    batch_id = api.submit("subject", [make_request(custom_id) for custom_id in ids])
    assert re.fullmatch(r"batch_[0-9a-f]{12}", batch_id)

    before = api.http.get(f"{BATCHES}/{batch_id}").json()
    assert list(before) == ["id", "processing_status", "counts", "created_at", "updated_at"]
    assert before["id"] == batch_id
    assert before["processing_status"] == "submitted"
    assert before["counts"] == {"total": 42, "succeeded": 0, "errored": 0, "pending": 42}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", before["created_at"])
    early = api.http.get(f"{BATCHES}/{batch_id}/results")
    assert (early.status_code, early.json()) == (400, {"detail": "Batch not yet complete"})

    api.work(batch_id)

    after = api.http.get(f"{BATCHES}/{batch_id}").json()
    assert after["processing_status"] == "ended"
    assert after["counts"] == {"total": 42, "succeeded": 42, "errored": 0, "pending": 0}
    assert after["updated_at"] >= before["updated_at"]
    document = api.http.get(f"{BATCHES}/{batch_id}/results").json()
    assert list(document) == ["results"]
    assert [result["custom_id"] for result in document["results"]] == ids
    first = document["results"][0]
    assert list(first) == ["custom_id", "status", "message", "usage", "error"]
    assert first["status"] == "succeeded"
    assert list(first["message"]) == ["content"]
    assert list(first["message"]["content"][0]) == ["type", "text"]
    assert list(first["usage"]) == ["input_tokens", "output_tokens"]
    assert first["error"] is None
    lines = api.http.get(f"{BATCHES}/{batch_id}/results", headers={"accept": LINES}).content.splitlines()
    assert [json.loads(line) for line in lines] == document["results"]


def test_results_come_packed_where_gzip_is_accepted(api: Any, make_request: Any) -> None:
    batch_id = api.submit("email", [make_request("a")])
    api.work(batch_id)
    path = f"{BATCHES}/{batch_id}/results"
    packed = api.http.get(path, headers={"accept-encoding": "gzip"})
    plain = api.http.get(path, headers={"accept-encoding": "identity"})
    assert packed.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert packed.json() == plain.json()


def test_what_is_wrong_inside_params_is_an_errored_result_and_the_rest_runs(api: Any, make_request: Any) -> None:
    bad = {"custom_id": "bad", "params": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 0}}
    batch_id = api.submit("subject", [make_request("good"), bad])
    api.work(batch_id)
    good, errored = api.http.get(f"{BATCHES}/{batch_id}/results").json()["results"]
    assert good["status"] == "succeeded"
    assert (errored["status"], errored["message"], errored["usage"]) == ("errored", None, None)
    assert errored["error"]["type"] == "invalid_request_error"
    assert "params.max_tokens" in errored["error"]["message"]


def test_a_hint_sends_one_request_to_another_pool_and_the_order_stays(api: Any, make_request: Any) -> None:
    requests = [
        make_request(f"lead_{number}", metadata={"model_hint": "llama-70b" if number % 2 else "mistral", "leadId": "x"})
        for number in range(20)
    ]
    batch_id = api.submit("email", requests)
    api.work(batch_id, "mistral", "llama-70b")
    native = api.http.get(f"/api/batches/{batch_id}/results").text.splitlines()
    found = [json.loads(line) for line in native]
    assert [line["custom_id"] for line in found] == [f"lead_{number}" for number in range(20)]


@pytest.mark.parametrize("headers", [{}, {"anthropic-version": "2026-10-21"}], ids=["stage", "anthropic"])
def test_a_create_takes_the_options_of_the_native_api(api: Any, make_request: Any, headers: dict[str, str]) -> None:
    def create(*requests: Any, **options: Any) -> Any:
        body = {"requests": requests} if headers else {"stage": "email", "requests": requests}
        return api.http.post(BATCHES, params=options, json=body, headers=headers)

    params = {"model": "mistral", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    asked = {"custom_id": "a", "params": params}
    first = create(asked, pool="llama-70b", priority=2, metadata=["team=sales", "run=7"]).json()["id"]
    api.work(first, "llama-70b")
    status = api.http.get(f"/api/batches/{first}").json()
    assert (status["succeeded"], status["priority"], status["metadata"]) == (1, 2, {"team": "sales", "run": "7"})
    second = create({**asked, "custom_id": "b"}, pool="llama-70b", reuse=first).json()["id"]
    assert api.http.get(f"/api/batches/{second}").json()["reused"] == {first: 1}
    bad = {"custom_id": "c", "params": 3}
    assert create(asked, bad).status_code == 400
    assert create(asked, bad, strict=False).status_code == 200
    assert create(asked, priority=10).status_code == 400
    assert create(asked, metadata="team").status_code == 400
    assert "reuse: there is no batch" in create(asked, reuse="batch_0").text


@pytest.mark.parametrize("path", [BATCHES, "/api/batches"])
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("", ["empty"]),
        ("{", ["JSON"]),
        ("[]", ["object"]),
        ('{"requests": []}', ["stage: is missing", "sales_intel"]),
        ('{"stage": "poetry", "requests": []}', ["stage:", "poetry", "subject"]),
        ('{"stage": "email", "requests": []}', ["requests"]),
        ('{"stage": "email"}', ["requests"]),
        ('{"stage": "email", "requests": {}}', ["requests"]),
        ('{"stage": "email", "requests": [{"params": {}}]}', ["requests[0].custom_id"]),
        ('{"stage": "email", "requests": [{"custom_id": "", "params": {}}]}', ["requests[0].custom_id"]),
        ('{"stage": "email", "requests": [{"custom_id": "a", "params": 3}]}', ["requests[0].params"]),
        (
            '{"stage": "email", "requests": [{"custom_id": "a", "params": {}}, {"custom_id": "a", "params": {}}]}',
            ["requests[1].custom_id", "requests[0]"],
        ),
        (
            '{"stage": "email", "requests": [{"custom_id": "a", "params": {}, "metadata": {"model_hint": "gpt"}}]}',
            ["requests[0].metadata.model_hint", "gpt", "mistral"],
        ),
        ('{"stage": "email", "requests": [], "model": "x"}', ["model"]),
    ],
)
def test_a_wrong_envelope_refuses_the_batch_and_names_the_place(
    api: Any, path: str, body: str, words: list[str]
) -> None:
    answer = api.http.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert list(answer.json()) == ["detail"]
    for word in words:
        assert word in answer.json()["detail"]


def test_lines_are_taken_as_a_body_with_the_stage_in_the_query(api: Any, make_request: Any) -> None:
    body = "\n".join(json.dumps(make_request(f"r{number}")) for number in range(5)).encode()
    for data, encoding in ((body, None), (gzip.compress(body), "gzip"), (zstd.compress(body), "zstd")):
        headers = {"content-type": LINES} | ({"content-encoding": encoding} if encoding else {})
        answer = api.http.post(BATCHES, params={"stage": "polish"}, content=data, headers=headers)
        assert answer.status_code == 200, answer.text
        status = api.http.get(f"{BATCHES}/{answer.json()['id']}").json()
        assert status["counts"]["total"] == 5
    wrong = api.http.post(BATCHES, params={"stage": "polish"}, content=body + b"\n{}", headers={"content-type": LINES})
    assert wrong.status_code == 400
    assert "line 6" in wrong.json()["detail"]


CUT_OFF = gzip.compress(b"{}" * 99, mtime=0)[:-9]  # no time in it: it is in the test's name


@pytest.mark.parametrize(
    ("headers", "content", "status"),
    [
        ({"content-type": "text/plain"}, b"x", 415),
        ({"content-type": "application/json", "content-encoding": "br"}, b"x", 415),
        ({"content-type": "application/json", "content-encoding": "gzip"}, b"not gzip", 400),
        ({"content-type": "application/json", "content-encoding": "gzip"}, CUT_OFF, 400),
    ],
)
def test_a_body_that_can_not_be_read_says_why(api: Any, headers: dict[str, str], content: bytes, status: int) -> None:
    answer = api.http.post(BATCHES, content=content, headers=headers)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["detail"]


def test_what_is_not_there_is_not_found(api: Any) -> None:
    for batch_id in ("batch_000000000000", "nonsense", "..", "%2e%2e%2fbatches", "a" * 300, "batch_%00"):
        for path in (f"{BATCHES}/{batch_id}", f"{BATCHES}/{batch_id}/results", f"/api/batches/{batch_id}"):
            answer = api.http.get(path)
            assert answer.status_code == 404, (path, answer.text)
    assert api.http.get(f"{BATCHES}/batch_000000000000").json() == {"detail": "Batch not found"}
    assert api.http.get(f"{BATCHES}/batch_000000000000/results").json() == {"detail": "Batch not found"}
    unknown = api.http.get("/v1/nothing")
    assert unknown.status_code == 404
    assert "/v1/nothing" in unknown.json()["detail"]
    wrong = api.http.put(BATCHES)
    assert wrong.status_code == 405
    assert "POST" in wrong.json()["detail"]
    assert "POST" in wrong.headers["allow"]


def test_a_body_over_the_limit_is_413_also_where_it_was_packed(start_api: Any) -> None:
    api = start_api(BATCHFILE_API__BODY_BYTES_MAX="100000", BATCHFILE_API__REQUESTS_MAX="10")
    body = json.dumps({"stage": "email", "requests": [], "pad": "x" * 200_000}).encode()
    plain = api.http.post(BATCHES, content=body, headers={"content-type": "application/json"})
    packed = api.http.post(
        BATCHES, content=gzip.compress(body), headers={"content-type": "application/json", "content-encoding": "gzip"}
    )
    assert (plain.status_code, packed.status_code) == (413, 413)
    many = {"stage": "email", "requests": [{"custom_id": str(number), "params": {}} for number in range(11)]}
    assert api.http.post(BATCHES, json=many).status_code == 413


def test_a_repeated_create_with_its_key_is_one_batch(api: Any, make_request: Any) -> None:
    document = {"stage": "email", "requests": [make_request("a")]}
    first, again = (api.http.post(BATCHES, json=document, headers={"idempotency-key": "k1"}).json() for _ in range(2))
    assert first == again
    document["requests"].append(make_request("b"))
    other = api.http.post(BATCHES, json=document, headers={"idempotency-key": "k1"})
    assert other.status_code == 422
    assert "Idempotency-Key" in other.json()["detail"]


def test_a_retry_without_a_key_is_known_by_its_body(api: Any, make_request: Any) -> None:
    document = {"stage": "email", "requests": [make_request("retry")]}
    first = api.http.post(BATCHES, json=document, headers={"x-stainless-retry-count": "0"}).json()
    retry = api.http.post(BATCHES, json=document, headers={"x-stainless-retry-count": "1"}).json()
    fresh = api.http.post(BATCHES, json=document, headers={"x-stainless-retry-count": "0"}).json()
    plain = api.http.post(BATCHES, json=document).json()
    assert first == retry
    assert len({first["id"], fresh["id"], plain["id"]}) == 3


def test_an_answer_that_does_not_fit_its_stages_schema_is_a_model_error(
    start_api: Any, make_request: Any, tmp_path: Any
) -> None:
    schema = {"type": "object", "required": ["subject"], "properties": {"subject": {"type": "integer"}}}
    (tmp_path / "subject.json").write_text(json.dumps(schema))
    (tmp_path / "batchfile.toml").write_text('[schemas]\nsubject = "subject.json"\n')
    api = start_api()
    batch_id = api.submit("subject", [make_request("a", "no JSON at all")])
    api.work(batch_id)
    (result,) = api.http.get(f"{BATCHES}/{batch_id}/results").json()["results"]
    assert result["error"] == {"type": "model_error", "message": "Output validation failed"}
    assert (result["status"], result["message"], result["usage"]) == ("errored", None, None)
