"""What the dashboard asks the native API for, which any client may."""

import json
from typing import Any
from urllib.parse import quote

import pytest

pytestmark = pytest.mark.slow
TEMPLATE = "Is this good? {{ review }}"
CSV = b'review,stars,"a note"\nGreat phone,5,x\nBad,1,y\n'


def check(api: Any, name: str, data: bytes, **query: str) -> dict[str, Any]:
    answer = api.http.post("/api/check", params={"name": name, **query}, content=data)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def lines(*custom_ids: str) -> bytes:
    params = {"messages": [{"role": "user", "content": "hello there"}], "max_tokens": 8}
    return b"".join(json.dumps({"custom_id": one, "params": params}).encode() + b"\n" for one in custom_ids)


@pytest.fixture(scope="module")
def made(api: Any, make_request: Any) -> dict[str, str]:
    """An ended batch with a failed request, a canceled one, and an open one; the newest first."""
    bad = make_request("bad") | {"params": {"max_tokens": 0, "messages": [{"role": "user", "content": "why not"}]}}
    ended = api.submit("email", [make_request("a", "First"), bad, make_request("c", "Third")])
    api.work(ended)
    canceled = api.submit("subject", [make_request("a")])
    api.http.post(f"/api/batches/{canceled}/cancel")
    opened = api.submit("email", [make_request(f"r{n}") for n in range(3)])
    return {"open": opened, "canceled": canceled, "ended": ended}


def ids(api: Any, **query: Any) -> list[str]:
    answer = api.http.get("/api/batches", params=query)
    assert answer.status_code == 200, answer.text
    return [one["id"] for one in answer.json()["data"]]


def test_the_page_is_served_with_its_files_and_a_strict_policy(api: Any) -> None:
    page = api.http.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    assert "require-trusted-types-for 'script'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    for name, kind in (("app.js", "text/javascript"), ("style.css", "text/css"), ("icon.svg", "image/svg+xml")):
        file = api.http.get(f"/dashboard/{name}")
        assert file.headers["content-type"].startswith(kind)
        assert api.http.get(f"/dashboard/{name}", headers={"if-none-match": file.headers["etag"]}).status_code == 304
        assert f"dashboard/{name}" in page.text
    for name in ("routes.py", "nothing.js", "..%2froutes.py", "%2e%2e/routes.py"):
        assert api.http.get(f"/dashboard/{name}").status_code in {401, 404}


def test_the_page_loads_nothing_from_elsewhere(api: Any) -> None:
    for name in ("index.html", "app.js", "api.js", "dom.js", "style.css"):
        text = api.http.get("/" if name == "index.html" else f"/dashboard/{name}").text
        assert not [word for word in ("https://", "//cdn", "innerHTML", "eval(") if word in text], name


def test_batches_are_filtered_by_state_stage_and_age(api: Any, made: dict[str, str]) -> None:
    assert ids(api, state="completed") == [made["ended"]]
    assert ids(api, state=["canceled", "open"]) == [made["open"], made["canceled"]]
    assert ids(api, stage="subject") == [made["canceled"]]
    assert ids(api, state="ended", stage="email") == [made["ended"]]
    created_at = api.http.get(f"/api/batches/{made['open']}").json()["created_at"]
    assert ids(api, since=created_at - 0.001) == [made["open"]]
    assert ids(api, since=created_at + 60) == []
    first = api.http.get("/api/batches", params={"stage": "email", "limit": 1}).json()
    assert (first["has_more"], first["data"][0]["id"]) == (True, made["open"])
    assert ids(api, stage="email", limit=1, after=first["next"]) == [made["ended"]]


def test_batches_are_asked_for_by_id_and_by_what_is_newer(api: Any, made: dict[str, str]) -> None:
    assert ids(api, id=[made["ended"], "batch_ffffffffffff", made["open"]]) == [made["ended"], made["open"]]
    assert ids(api, before=made["ended"]) == [made["open"], made["canceled"]]
    assert ids(api, before=made["open"]) == []


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"state": "done"}, "state: 'done' is unknown; use one of planning, open"),
        ({"id": "batch_a", "state": "open"}, "id and before: send one of them"),
        ({"since": "yesterday"}, "since: must be a number"),
        ({"sort": "age"}, "'sort' is not a query parameter"),
    ],
)
def test_a_wrong_filter_is_named(api: Any, query: dict[str, str], words: str) -> None:
    refused = api.http.get("/api/batches", params=query)
    assert refused.status_code == 400
    assert words in refused.json()["detail"]


def test_what_has_not_changed_is_not_sent_again(api: Any, made: dict[str, str]) -> None:
    for path in (
        "/api/batches",
        f"/api/batches/{made['ended']}",
        f"/api/batches/{made['ended']}/latest",
        "/api/runners",
    ):
        etag = api.http.get(path).headers["etag"]
        again = api.http.get(path, headers={"if-none-match": etag})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
        assert api.http.get(path, headers={"if-none-match": '"other"'}).status_code == 200


def test_the_shards_of_a_batch(api: Any, made: dict[str, str]) -> None:
    assert api.http.get(f"/api/batches/{made['open']}/shards").json()["pools"] == {}
    assert api.http.get(f"/api/batches/{made['ended']}/shards").json()["pools"] == {}
    assert api.http.get("/api/batches/batch_ffffffffffff/shards").status_code == 404


def test_the_latest_results_have_their_prompts(api: Any, made: dict[str, str]) -> None:
    assert api.http.get(f"/api/batches/{made['open']}/latest").json() == {"data": []}
    first, bad, _ = api.http.get(f"/api/batches/{made['ended']}/latest").json()["data"]
    assert (first["custom_id"], first["status"], first["index"]) == ("a", "succeeded", 0)
    assert [turn["text"] for turn in first["prompt"]] == ["You write to leads.", "First"]
    assert "First" in first["answer"]
    assert bad["error"]["type"] == "invalid_request_error"
    assert "why not" in bad["prompt"][0]["text"], "the line as it is, because it is not a valid request"
    assert len(api.http.get(f"/api/batches/{made['ended']}/latest?limit=1").json()["data"]) == 1


def test_results_in_the_formats_of_all_apis(api: Any, made: dict[str, str]) -> None:
    place = f"/api/batches/{made['ended']}/results"
    stage = api.http.get(f"/v1/messages/batches/{made['ended']}/results", headers={"accept": "application/x-ndjson"})
    assert api.http.get(f"{place}?format=stage").content == stage.content
    rows = {
        name: api.http.get(f"{place}?format={name}").text.splitlines()
        for name in ("openai", "openai_errors", "anthropic")
    }
    assert [len(some) for some in rows.values()] == [2, 1, 3]
    assert json.loads(rows["anthropic"][0])["result"]["type"] == "succeeded"
    assert api.http.get(f"{place}?format=native").content == api.http.get(place).content
    assert api.http.get(f"{place}?format=xml").status_code == 400
    assert api.http.get(f"{place}?format=openai&live=true").status_code == 400
    assert api.http.get(f"/api/batches/{made['open']}/results?format=openai").status_code == 400


def test_a_file_of_requests_is_checked(api: Any) -> None:
    found = check(api, "r.jsonl", lines("a", "b", "a") + b"{}\n", stage="email")
    assert (found["kind"], found["advice"], found["requests"], found["bad"]) == ("JSONL of requests", None, 4, 1)
    assert [(one["line"], one["where"]) for one in found["problems"]][-1] == (3, "custom_id")
    assert found["num_problems"] == len(found["problems"])
    assert [(pool["pool"], pool["requests"], pool["runners"]) for pool in found["pools"]] == [("mistral", 3, 0)]
    assert (found["input_tokens"], found["max_output_tokens"]) == (6, 24)


def test_rows_need_a_prompt_which_inserts_columns(api: Any) -> None:
    found = check(api, "r.csv", CSV)
    assert (found["needs_prompt"], found["columns"]) == (True, ["review", "stars", "a note"])
    assert "write a prompt over its columns" in found["advice"]
    found = check(api, "r.csv", CSV, prompt=TEMPLATE, pool="mistral")
    assert (found["advice"], found["requests"], found["problems"]) == (None, 2, [])
    assert found["first_prompt"] == [{"role": "user", "text": "Is this good? Great phone", "cut": 0}]
    made = api.http.post(f"/api/requests?name=r.csv&prompt={quote(TEMPLATE)}", content=CSV)
    assert [json.loads(line)["custom_id"] for line in made.text.splitlines() if line] == ["row-000001", "row-000002"]
    created = api.http.post(
        "/api/batches?pool=mistral", content=made.content, headers={"content-type": "application/x-ndjson"}
    )
    assert created.json()["total"] == 2


@pytest.mark.parametrize(
    "prompt",
    [
        "{{ review * 99999999 }}",
        "{% for a in row %}x{% endfor %}",
        "{# #}",
        "{{{ review }}",
        "{{ review.upper() }}",
        "{{ 'x' }}",
    ],
)
def test_a_prompt_that_computes_is_rejected(api: Any, prompt: str) -> None:
    for path in ("/api/check", "/api/requests"):
        refused = api.http.post(path, params={"name": "r.csv", "prompt": prompt}, content=CSV)
        assert refused.status_code == 400
        assert "it can only insert columns" in refused.json()["detail"]


def test_a_file_that_cannot_be_submitted_says_why(api: Any) -> None:
    assert "of results" in check(api, "r.jsonl", b'{"custom_id": "a", "status": "succeeded", "usage": {}}\n')["advice"]
    refused = api.http.post("/api/requests?name=r.csv", content=CSV)
    assert "write a prompt over its columns" in refused.json()["detail"]
    assert api.http.post("/api/check?stage=nope", content=lines("a")).status_code == 400
    assert api.http.post("/api/check", content=b"x" * (32 * 1024 * 1024 + 1)).status_code == 413
    rows = b"review\n" + b"good\n" * 2_000_000
    assert api.http.post(f"/api/check?name=r.csv&prompt={quote(TEMPLATE)}", content=rows).status_code == 413
    assert check(api, "p.txt", b"one prompt\nanother\n", pool="mistral")["requests"] == 2
    assert check(api, "e.jsonl", b"\n", stage="email")["num_problems"] == 1


def test_another_tenant_has_none_of_it(serve_api: Any, make_request: Any) -> None:
    import hashlib

    digest = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("acme", "zeta")}
    api = serve_api(BATCHFILE_API_KEYS=",".join(f"{name}:{one}" for name, one in digest.items()))
    batch_id = api.submit("email", [make_request("secret")], **{"x-api-key": "acme"})
    theirs = {"x-api-key": "zeta"}
    for path in ("shards", "latest", "results?format=openai"):
        assert api.http.get(f"/api/batches/{batch_id}/{path}", headers=theirs).status_code == 404
        assert api.http.get(f"/api/batches/{batch_id}/{path}").status_code == 401
    assert api.http.get("/api/batches", params={"id": batch_id}, headers=theirs).json()["data"] == []
    assert api.http.get("/api/batches", params={"state": "open"}, headers=theirs).json()["data"] == []
    for path in ("/api/check", "/api/requests"):
        assert api.http.post(path, content=lines("a")).status_code == 401
    assert api.http.get("/").status_code == api.http.get("/dashboard/app.js").status_code == 200
