"""What the commands ask of a service and no dialect has: wishes of a create, and a retry."""

import json
from typing import Any

from tests.service.remote_kit import jsonl, line

BATCHES = "/api/batches"
LINES = {"content-type": "application/x-ndjson"}
BAD = line("bad", max_token=5)


def test_a_create_may_wish_for_a_priority_metadata_and_leniency(api: Any) -> None:
    query = {"priority": 1, "metadata": ["team=blue", "note=a=b"], "strict": "false"}
    lines = [{**line("a"), "metadata": {"model_hint": "mistral"}}, line("nowhere")]
    answer = api.http.post(BATCHES, params=query, content=jsonl(*lines) + b"{rubbish", headers=LINES)
    made = answer.json()
    assert answer.status_code == 200, answer.text
    assert (made["priority"], made["metadata"]) == (1, {"team": "blue", "note": "a=b"})
    assert (made["stage"], made["total"], made["errored"], made["dialect"]) == (None, 3, 2, "native")
    share = {"shards": 1, "shards_done": 0, "shards_leased": 0, "requests": 1, "requests_finished": 0}
    assert made["pools"] == {"mistral": share}


def test_a_create_may_wish_for_the_pool_of_all_its_requests(api: Any) -> None:
    lines = [{**line("a"), "metadata": {"model_hint": "mistral"}}, line("b")]

    def post(pool: str) -> Any:
        return api.http.post(BATCHES, params={"pool": pool}, content=jsonl(*lines), headers=LINES)

    made = post("llama-70b").json()
    assert (list(made["pools"]), made["total"], made["errored"]) == (["llama-70b"], 2, 0)
    answer = post("lama")
    assert (answer.status_code, answer.json()["detail"]) == (
        400,
        "pool: 'lama' is unknown; use one of llama-70b, mistral",
    )


def test_wishes_that_can_not_be_are_refused_by_name(api: Any) -> None:
    long = "n" * 65
    for query in ({"metadata": "team"}, {"metadata": f"{long}=a"}, {"metadata": [f"n{n}=a" for n in range(17)]}):
        answer = api.http.post(BATCHES, params={"stage": "email", **query}, content=jsonl(line("a")), headers=LINES)
        assert (answer.status_code, answer.json()["detail"][:10]) == (400, "metadata: ")
    answer = api.http.post(BATCHES, params={"stage": "email", "priority": 10}, content=jsonl(line("a")), headers=LINES)
    assert (answer.status_code, "priority" in answer.json()["detail"]) == (400, True)


def test_one_key_with_other_wishes_is_another_request(api: Any) -> None:
    def post(priority: int) -> Any:
        query = {"stage": "email", "priority": priority}
        return api.http.post(BATCHES, params=query, content=jsonl(line("a")), headers=LINES | {"idempotency-key": "w"})

    first = post(1)
    assert post(1).json()["id"] == first.json()["id"]
    assert post(2).status_code == 422


def test_a_retry_is_a_batch_of_what_did_not_succeed_and_one_for_one_key(api: Any) -> None:
    batch_id = api.submit("email", [line("good"), BAD])
    path = f"{BATCHES}/{batch_id}/retry"
    early = api.http.post(path)
    assert (early.status_code, "has not ended" in early.json()["detail"]) == (400, True)
    api.work(batch_id)
    key = {"idempotency-key": "again"}
    made = api.http.post(path, headers=key).json()
    assert (made["total"], made["stage"], made["metadata"]) == (1, "email", {"retry_of": batch_id})
    assert api.http.post(path, headers=key).json()["id"] == made["id"]
    assert api.http.post(path).json()["id"] != made["id"]
    other = api.submit("email", [BAD])
    api.work(other)
    assert api.http.post(f"{BATCHES}/{other}/retry", headers=key).status_code == 422
    assert api.http.post(f"{BATCHES}/batch_000000000000/retry").status_code == 404


def test_a_retry_of_an_anthropic_batch_is_answered_as_one(api: Any) -> None:
    requests = [{"custom_id": "a", "params": {"model": "nonesuch", "max_tokens": 5, "messages": []}}]
    headers = {"anthropic-version": "2023-06-01"}
    made = api.http.post("/v1/messages/batches", json={"requests": requests}, headers=headers).json()
    api.http.post(f"{BATCHES}/{made['id']}/cancel")
    while api.http.get(f"{BATCHES}/{made['id']}").json()["state"] != "ended":
        pass
    again = api.http.post(f"{BATCHES}/{made['id']}/retry").json()
    assert again["id"].startswith("msgbatch_")
    answer = api.http.get(f"/v1/messages/batches/{again['id']}")
    assert json.loads(answer.content)["type"] == "message_batch"
