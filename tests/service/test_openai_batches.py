"""OpenAI's own Python client, unmodified, against a real server: batches, from their lines to their answers."""

import base64
import json
import re
import struct
import threading
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Batch, Completion, CreateEmbeddingResponse, FileDeleted, FileObject
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from batchfile import Runner, RunnerOptions
from tests.helpers.engine import engine_factory
from tests.helpers.ledger import batches, ending
from tests.helpers.settings import load_settings
from tests.helpers.store import open_service_ledger
from tests.service.openai_kit import (
    CHAT,
    KEY,
    OTHER_KEY,
    client,
    connect,
    direct,
    jsonl,
    line,
    rows,
    served,
    strict,
    submit,
    until,
    work,
)

__all__ = ["client", "connect", "served"]

COMPLETIONS, EMBEDDINGS = "/v1/completions", "/v1/embeddings"
NUM_PAGED = 200


def test_a_file_goes_in_and_its_answers_come_out(served: Any, client: Any) -> None:
    given = [line(f"r{number}") for number in range(50)] + [
        line("bad", temperature=9),
        line("also bad", audio={"voice": "x"}),
    ]
    file = strict(FileObject, client.files.create(file=("leads.jsonl", jsonl(*given)), purpose="batch"))
    assert (file.filename, file.bytes, file.purpose, file.status) == (
        "leads.jsonl",
        len(jsonl(*given)),
        "batch",
        "processed",
    )
    assert file.expires_at == pytest.approx(file.created_at + 30 * 24 * 3600, abs=1)
    created = client.batches.create(
        input_file_id=file.id, endpoint=CHAT, completion_window="24h", metadata={"customer": "Jürgen"}
    )
    assert re.fullmatch(r"batch_[0-9a-f]{32}", created.id)
    assert created.status in {"validating", "in_progress"}
    assert created.output_file_id is None

    batch = work(served, client, created.id)

    assert batch.status == "completed"
    assert batch.metadata == {"customer": "Jürgen"}
    assert (batch.endpoint, batch.input_file_id, batch.errors) == (CHAT, file.id, None)
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (52, 50, 2)
    assert batch.usage.input_tokens > 0
    assert batch.usage.total_tokens == batch.usage.input_tokens + batch.usage.output_tokens
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at < batch.expires_at

    output = rows(client, batch.output_file_id)
    assert [row["custom_id"] for row in output] == [f"r{number}" for number in range(50)]
    assert list(output[0]) == ["id", "custom_id", "response", "error"]
    for row in output:
        assert (row["error"], row["response"]["status_code"]) == (None, 200)
        completion = ChatCompletion.model_validate(row["response"]["body"])
        assert completion.choices[0].message.content
        assert completion.created == batch.created_at
    errors = rows(client, batch.error_file_id)
    assert [(row["custom_id"], row["error"], row["response"]["status_code"]) for row in errors] == [
        ("bad", None, 400),
        ("also bad", None, 400),
    ]
    assert [list(row["response"]["body"]["error"]) for row in errors] == [["message", "type", "param", "code"]] * 2
    assert "temperature" in errors[0]["response"]["body"]["error"]["message"]
    assert "audio" in errors[1]["response"]["body"]["error"]["message"]


def test_output_files_are_files_of_the_same_bytes_each_time_until_they_are_removed(served: Any, client: Any) -> None:
    batch = submit(
        client, line("a"), line("b", temperature=9), output_expires_after={"anchor": "created_at", "seconds": 7200}
    )
    batch = work(served, client, batch.id)
    first, second = (client.files.content(batch.output_file_id).content for _ in range(2))
    assert first == second
    about = strict(FileObject, client.files.retrieve(batch.output_file_id))
    assert (about.bytes, about.purpose) == (len(first), "batch_output")
    (written,) = Path(served.store).rglob(f"*{batch.output_file_id}.size")
    assert written.read_text() == str(len(first)), "a file is rendered once for its size, not by each process"
    assert about.expires_at == about.created_at + 7200
    assert strict(FileDeleted, client.files.delete(batch.output_file_id)).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.content(batch.output_file_id)
    assert client.files.retrieve(batch.error_file_id).bytes > 0


def test_nothing_failed_means_no_error_file_and_nothing_succeeded_no_output_file(served: Any, client: Any) -> None:
    good = work(served, client, submit(client, line("a")).id)
    bad = work(served, client, submit(client, line("a", stop=3)).id)
    assert (good.error_file_id, bad.output_file_id) == (None, None)
    assert (bad.status, bad.request_counts.failed) == ("completed", 1)


def test_a_wrong_file_makes_a_failed_batch_that_names_its_lines(client: Any) -> None:
    batch = submit(
        client,
        line("a"),
        b"{not json",
        b"",
        line("b", url="/v1/embeddings"),
        {"method": "POST", "url": CHAT, "body": {}},
        line("c", model="gpt-none"),
        line("d") | {"method": "GET"},
        {"custom_id": "e", "params": {}},
        {"custom_id": "f", "method": "POST", "url": CHAT, "body": {"messages": []}},
        {"custom_id": "g", "method": "POST", "url": CHAT},
        7,
    )
    failed = until(client, batch.id, "failed")
    found = [(error.code, error.line, error.param) for error in failed.errors.data]
    assert found == [
        ("invalid_json_line", 2, None),
        ("url_mismatch", 4, "url"),
        ("missing_required_parameter", 5, "custom_id"),
        ("model_not_found", 6, "body.model"),
        ("invalid_method", 7, "method"),
        ("invalid_value", 8, None),
        ("missing_required_parameter", 9, "body.model"),
        ("missing_required_parameter", 10, "body"),
        ("invalid_json_line", 11, None),
    ]
    assert failed.errors.data[-3].message == "body.model: is missing; name one of llama-70b, mistral, vectors"
    assert not any("params" in error.message for error in failed.errors.data[-3:]), "that is another format"
    assert failed.errors.object == "list"
    assert (failed.output_file_id, failed.error_file_id, failed.in_progress_at) == (None, None, None)
    assert failed.failed_at is not None
    assert failed.request_counts.total == 0


@pytest.mark.parametrize(
    ("data", "code", "number"),
    [
        (jsonl(line("a"), line("b"), line("a")), "duplicate_custom_id", 3),
        (b"\n \n", "empty_file", None),
        (b"name,city\nJo,Rome\nBo,Oslo\n", "invalid_file", None),
        (b"", "empty_file", None),
    ],
)
def test_a_file_that_can_be_no_batch_fails_with_its_code(client: Any, data: bytes, code: str, number: Any) -> None:
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    failed = until(client, batch.id, "failed")
    assert [(error.code, error.line) for error in failed.errors.data] == [(code, number)]


@pytest.mark.parametrize(("url", "given"), [(CHAT, "messages"), ("/v1/completions", "prompt")])
def test_lines_of_only_custom_id_and_body_are_requests_to_the_endpoint(
    served: Any, client: Any, url: str, given: str
) -> None:
    body = line("a")["body"] if given == "messages" else {"model": "mistral", "prompt": "Write.", "max_tokens": 8}
    batch = submit(client, {"custom_id": "a", "body": body}, {"custom_id": "b", "body": body}, endpoint=url)
    done = work(served, client, batch.id)
    assert (done.status, done.request_counts.completed) == ("completed", 2)
    kinds = {row["response"]["body"]["object"] for row in rows(client, done.output_file_id)}
    assert kinds == {"chat.completion" if url == CHAT else "text_completion"}


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'"data"'])
def test_a_body_that_is_no_object_is_told_what_it_must_be(served: Any, body: bytes) -> None:
    answer = served.http.post("/v1/batches", content=body, headers={"authorization": f"Bearer {KEY}"})
    assert answer.status_code == 400
    wanted = "The body must be a JSON object with input_file_id, endpoint, completion_window."
    assert answer.json()["error"]["message"] == wanted


def test_responses_come_back_as_the_client_reads_them_and_other_endpoints_are_rejected_at_create(
    served: Any, client: Any
) -> None:
    one = {"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": {"model": "mistral", "input": "hi"}}
    batch = work(served, client, submit(client, one, endpoint="/v1/responses").id)
    (row,) = rows(client, batch.output_file_id)
    assert Response.model_validate(row["response"]["body"]).output_text == "hi"
    for endpoint, told in (
        ("/v1/chat", r"endpoint: .*must be"),
        ("/v1/audio/transcriptions", r"endpoint: .* is not served; send the recording as an input_audio part"),
        ("/v1/classify", r"endpoint: no pool of this service serves /v1/classify; it needs a pool with task = 'class"),
    ):
        with pytest.raises(openai.BadRequestError, match=told):
            submit(client, one | {"url": endpoint}, endpoint=endpoint)


def test_a_line_for_a_pool_that_cannot_serve_it_fails_the_batch_before_it_runs(client: Any) -> None:
    one = {"custom_id": "a", "method": "POST", "url": EMBEDDINGS, "body": {"model": "mistral", "input": "hi"}}
    failed = until(client, submit(client, one, endpoint=EMBEDDINGS).id, "failed")
    [error] = failed.errors.data
    assert (error.line, error.message) == (
        1,
        "/v1/embeddings is not served by the pool 'mistral', which serves /v1/chat/completions and /v1/completions; "
        "use one with task = 'embed'",
    )


def test_a_raw_prompt_is_gone_on_from(served: Any, client: Any) -> None:
    def one(custom_id: str, **body: Any) -> dict[str, Any]:
        return {"custom_id": custom_id, "method": "POST", "url": COMPLETIONS, "body": {"model": "mistral"} | body}

    given = [
        one("text", prompt="one two three", max_tokens=2, n=2),
        one("stopped", prompt="one two STOP three", stop="STOP"),
        one("ids", prompt=[1, 2, 3]),
        one("suffix", prompt="x", suffix="y"),
        one("many", prompt=["x", "y"]),
    ]
    batch = work(served, client, submit(client, *given, endpoint=COMPLETIONS).id)
    assert batch.endpoint == COMPLETIONS
    output = {row["custom_id"]: row["response"]["body"] for row in rows(client, batch.output_file_id)}
    answers = {custom_id: Completion.model_validate(body, strict=True) for custom_id, body in output.items()}
    assert [(choice.index, choice.text, choice.finish_reason) for choice in answers["text"].choices] == [
        (0, "one two", "length"),
        (1, "one two", "length"),
    ]
    assert (answers["stopped"].choices[0].text, answers["stopped"].choices[0].finish_reason) == ("one two ", "stop")
    assert answers["ids"].choices[0].text == "1 2 3"
    assert all(not set(Completion.model_fields) - body.keys() - {"system_fingerprint"} for body in output.values())
    errors = {row["custom_id"]: row["response"] for row in rows(client, batch.error_file_id)}
    assert {custom_id: error["status_code"] for custom_id, error in errors.items()} == {"suffix": 400, "many": 400}
    assert "suffix: only an endpoint" in errors["suffix"]["body"]["error"]["message"]


def test_texts_become_vectors_on_a_pool_that_embeds(served: Any, client: Any) -> None:
    def one(custom_id: str, model: str = "vectors", **body: Any) -> dict[str, Any]:
        return {"custom_id": custom_id, "method": "POST", "url": EMBEDDINGS, "body": {"model": model} | body}

    given = [
        one("text", input="hello", dimensions=4),
        one("texts", input=["hello", "there", "hello"]),
        one("ids", input=[[1, 2], [3]]),
        one("packed", input="hello", dimensions=4, encoding_format="base64"),
        one("empty", input=""),
    ]
    batch = submit(client, *given, endpoint=EMBEDDINGS)
    until(client, batch.id, "in_progress")
    served.work(batch.id, embedding="vectors")
    batch = until(client, batch.id, "completed")
    output = {row["custom_id"]: row["response"]["body"] for row in rows(client, batch.output_file_id)}
    packed = output.pop("packed")
    answers = {name: CreateEmbeddingResponse.model_validate(body, strict=True) for name, body in output.items()}
    assert {name: len(answer.data) for name, answer in answers.items()} == {"text": 1, "texts": 3, "ids": 2}
    assert [one.index for one in answers["texts"].data] == [0, 1, 2]
    first, second, third = (one.embedding for one in answers["texts"].data)
    assert first == third != second
    (vector,) = (one.embedding for one in answers["text"].data)
    assert struct.unpack("<4f", base64.b64decode(packed["data"][0]["embedding"])) == pytest.approx(vector)
    assert answers["text"].usage.total_tokens == answers["text"].usage.prompt_tokens > 0
    assert (batch.usage.output_tokens, batch.request_counts.failed) == (0, 1)
    errors = {row["custom_id"]: row["response"] for row in rows(client, batch.error_file_id)}
    assert "body.input: must not be empty" in errors["empty"]["body"]["error"]["message"]
    assert {error["status_code"] for error in errors.values()} == {400}


def test_a_model_calls_a_tool_and_its_answer_goes_back(
    served: Any, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHFILE_ECHO_TOOL_INPUT", '{"city": "Bern"}')
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    first = work(served, client, submit(client, line("a", tools=tools)).id)
    (row,) = rows(client, first.output_file_id)
    (choice,) = ChatCompletion.model_validate(row["response"]["body"]).choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    (call,) = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("look", {"city": "Bern"})
    messages = [
        {"role": "user", "content": "Where?"},
        choice.message.model_dump(mode="json"),
        {"role": "tool", "tool_call_id": call.id, "content": "Here."},
    ]
    second = work(served, client, submit(client, line("a", tools=tools, messages=messages)).id)
    (row,) = rows(client, second.output_file_id)
    assert row["response"]["body"]["choices"][0]["message"]["content"] == "Where?"


def test_a_cancelled_batch_ends_with_the_rest_in_its_error_file(client: Any) -> None:
    batch = submit(client, *(line(f"r{number}") for number in range(5)))
    until(client, batch.id, "in_progress")
    cancelled = strict(Batch, client.batches.cancel(batch.id))
    assert cancelled.status in {"cancelling", "cancelled"}
    assert cancelled.cancelling_at is not None
    ended = until(client, batch.id, "cancelled")
    assert ended.cancelled_at is not None
    assert (ended.request_counts.failed, ended.output_file_id) == (5, None)
    found = rows(client, ended.error_file_id)
    assert [(row["custom_id"], row["response"], row["error"]["code"]) for row in found] == [
        (f"r{number}", None, "batch_cancelled") for number in range(5)
    ]
    with pytest.raises(openai.BadRequestError, match="cancelled"):
        client.batches.cancel(batch.id)


def test_an_expired_batch_keeps_what_has_finished_and_says_of_the_rest_that_it_expired(
    served: Any, client: Any
) -> None:
    batch = submit(client, line("a"), line("b", model="llama-70b"))
    until(client, batch.id, "in_progress")
    ledger = open_service_ledger(served.store, load_settings())
    options = RunnerOptions(runner_id="a", pool="mistral", is_janitor=False)
    runner = Runner(ledger, engine_factory("echo", model="echo"), options)
    thread = threading.Thread(target=runner.run)
    thread.start()
    while client.batches.retrieve(batch.id).request_counts.completed == 0:
        time.sleep(0.02)
    runner.stop_now()
    thread.join(30)
    batches.end(ledger, batch.id, "expired")
    ending.finish(ledger, batch.id, runner="test")
    expired = until(client, batch.id, "expired")
    assert expired.expired_at is not None
    assert [row["custom_id"] for row in rows(client, expired.output_file_id)] == ["a"]
    (rest,) = rows(client, expired.error_file_id)
    assert (rest["custom_id"], rest["response"], rest["error"]["code"]) == ("b", None, "batch_expired")


def test_pages_of_batches_hold_every_batch_once_newest_first(connect: Any) -> None:
    client = connect(OTHER_KEY)
    file = client.files.create(file=("in.jsonl", jsonl(line("a"))), purpose="batch")
    wanted = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
    made = [client.batches.create(**wanted).id for _ in range(NUM_PAGED)]
    found = [strict(Batch, batch).id for batch in client.batches.list(limit=70)]
    assert found == made[::-1]
    assert [batch.id for batch in client.batches.list(limit=4, after=made[9])] == made[8::-1]
    assert len(client.batches.list().data) == 20
    page = client.batches.list(limit=100, after=made[100])
    assert (page.first_id, page.last_id, page.has_more) == (made[99], made[0], False)  # type: ignore[attr-defined]


def test_a_batch_goes_on_when_its_file_is_removed(served: Any, client: Any) -> None:
    file = client.files.create(file=("in.jsonl", jsonl(line("a"))), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    client.files.delete(file.id)
    assert work(served, client, batch.id).status == "completed"
    with pytest.raises(openai.BadRequestError, match="input_file_id"):
        client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")


def test_a_retried_create_is_one_batch(served: Any, client: Any) -> None:
    file = client.files.create(file=("in.jsonl", jsonl(line("a"))), purpose="batch")
    body = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
    ids = []
    for count in ("0", "1", "0"):
        head = {"authorization": f"Bearer {KEY}", "x-stainless-retry-count": count}
        ids.append(served.http.post("/v1/batches", json=body, headers=head).json()["id"])
    assert ids[0] == ids[1] != ids[2]


def test_a_create_whose_answer_was_lost_with_the_service_makes_one_batch(start_api: Any, dying_route: Any) -> None:
    first = start_api()
    with openai.OpenAI(base_url=f"{first.url}/v1", api_key="x", http_client=direct()) as one:
        file = one.files.create(file=("in.jsonl", jsonl(line("a"))), purpose="batch")
    route = dying_route(first)
    with openai.OpenAI(base_url=f"{route.url}/v1", api_key="x", http_client=direct(), max_retries=8) as one:
        made = one.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        assert [batch.id for batch in one.batches.list()] == [made.id]
    counts = [head for data in route.heads for head in data.lower().split(b"\r\n") if b"retry-count" in head]
    assert counts[:2] == [b"x-stainless-retry-count: 0", b"x-stainless-retry-count: 1"]
