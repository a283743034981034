"""OpenAI's own Python client, unmodified, against a real server: files, uploads, batches, pages, errors."""

import base64
import hashlib
import io
import json
import os
import re
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Batch, Completion, CreateEmbeddingResponse, FileDeleted, FileObject, Upload
from openai.types.chat import ChatCompletion
from openai.types.uploads import UploadPart

from batchfile.engine.open import engine_factory
from batchfile.ledger import batches
from batchfile.places import open_service_ledger
from batchfile.runner.runner import Runner, RunnerOptions
from batchfile.settings import load_settings
from batchfile.words import Task

NODE = Path(__file__).parents[1] / "sdk-node-openai"
KEY, OTHER_KEY, NODE_KEY = "key-of-acme", "key-of-other", "key-of-node"
TENANTS = {"acme": KEY, "other": OTHER_KEY, "node": NODE_KEY}
KEYS = ",".join(f"{tenant}:{hashlib.sha256(key.encode()).hexdigest()}" for tenant, key in TENANTS.items())
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
NUM_PAGED, NUM_LINES = 200, 10_000
WAIT_S = 60.0
ENDED = {"completed", "failed", "expired", "cancelled"}


def line(custom_id: str, *, url: str = CHAT, model: str = "mistral", **more: Any) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": "Write one subject line."}], "max_tokens": 16}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body | more}


def jsonl(*lines: Any) -> bytes:
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in lines)


@pytest.fixture(scope="module")
def served(serve_api: Any) -> Any:
    pools = {name: {"model": f"org/{name}"} for name in ("mistral", "llama-70b")}
    pools["vectors"] = {"model": "org/vectors", "task": "embed"}
    return serve_api(
        BATCHFILE_API_KEYS=KEYS,
        BATCHFILE_API__FILE_BYTES_MAX="2000000",
        BATCHFILE_POOLS=json.dumps(pools),
        BATCHFILE_STAGES="{}",
    )


def direct() -> Any:
    """Past any proxy of the environment."""
    return openai.DefaultHttpxClient(trust_env=False)


@pytest.fixture(scope="module")
def connect(served: Any) -> Iterator[Callable[..., openai.OpenAI]]:
    made: list[openai.OpenAI] = []

    def one(key: str = KEY, **more: Any) -> openai.OpenAI:
        made.append(
            openai.OpenAI(base_url=f"{served.url}/v1", api_key=key, http_client=direct(), max_retries=0, **more)
        )
        return made[-1]

    yield one
    for client in made:
        client.close()


@pytest.fixture(scope="module")
def client(connect: Any) -> Any:
    return connect()


def strict(model: Any, found: Any) -> Any:
    """What came over the wire, validated for once: the client itself only constructs."""
    model.model_validate(found.to_dict(mode="json"), strict=False)
    return found


def submit(client: Any, *lines: Any, **more: Any) -> Any:
    file = client.files.create(file=("in.jsonl", jsonl(*lines)), purpose="batch")
    more = {"endpoint": CHAT, "completion_window": "24h", **more}
    return strict(Batch, client.batches.create(input_file_id=file.id, **more))


def until(client: Any, batch_id: str, *states: str) -> Any:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        batch = strict(Batch, client.batches.retrieve(batch_id))
        if batch.status in states:
            return batch
        assert batch.status not in ENDED, batch
        time.sleep(0.02)
    pytest.fail(f"{batch_id} is still {batch.status}")


def work(served: Any, client: Any, batch_id: str) -> Any:
    """Run it with echo engines to its end."""
    until(client, batch_id, "in_progress")
    served.work(batch_id, "mistral")
    return until(client, batch_id, *ENDED)


def rows(client: Any, file_id: str) -> list[dict[str, Any]]:
    return [json.loads(row) for row in client.files.content(file_id).text.splitlines()]


def test_a_file_goes_in_and_its_answers_come_out(served: Any, client: Any) -> None:
    given = [line(f"r{number}") for number in range(50)] + [line("bad", temperature=9), line("also bad", logprobs=True)]
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
    assert "logprobs" in errors[1]["response"]["body"]["error"]["message"]


def test_output_files_are_files_of_the_same_bytes_each_time_until_they_are_removed(served: Any, client: Any) -> None:
    batch = submit(
        client, line("a"), line("b", temperature=9), output_expires_after={"anchor": "created_at", "seconds": 7200}
    )
    batch = work(served, client, batch.id)
    first, second = (client.files.content(batch.output_file_id).content for _ in range(2))
    assert first == second
    about = strict(FileObject, client.files.retrieve(batch.output_file_id))
    assert (about.bytes, about.purpose) == (len(first), "batch_output")
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
    ]
    assert failed.errors.object == "list"
    assert (failed.output_file_id, failed.error_file_id, failed.in_progress_at) == (None, None, None)
    assert failed.failed_at is not None
    assert failed.request_counts.total == 0


@pytest.mark.parametrize(
    ("data", "code", "number"),
    [
        (jsonl(line("a"), line("b"), line("a")), "duplicate_custom_id", 3),
        (b"\n \n", "empty_file", None),
        (b"", "empty_file", None),
    ],
)
def test_a_file_that_can_be_no_batch_fails_with_its_code(client: Any, data: bytes, code: str, number: Any) -> None:
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    failed = until(client, batch.id, "failed")
    assert [(error.code, error.line) for error in failed.errors.data] == [(code, number)]


def test_lines_of_an_endpoint_that_is_not_served_yet_are_errored_one_by_one(served: Any, client: Any) -> None:
    one = {"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": {"model": "mistral", "input": "hi"}}
    batch = work(served, client, submit(client, one, endpoint="/v1/responses").id)
    (row,) = rows(client, batch.error_file_id)
    assert row["response"]["status_code"] == 400
    assert CHAT in row["response"]["body"]["error"]["message"]


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
    assert "body.suffix" in errors["suffix"]["body"]["error"]["message"]


def test_texts_become_vectors_on_a_pool_that_embeds(served: Any, client: Any) -> None:
    def one(custom_id: str, model: str = "vectors", **body: Any) -> dict[str, Any]:
        return {"custom_id": custom_id, "method": "POST", "url": EMBEDDINGS, "body": {"model": model} | body}

    given = [
        one("text", input="hello", dimensions=4),
        one("texts", input=["hello", "there", "hello"]),
        one("ids", input=[[1, 2], [3]]),
        one("packed", input="hello", dimensions=4, encoding_format="base64"),
        one("generating", model="mistral", input="hello"),
        one("empty", input=""),
    ]
    batch = submit(client, *given, endpoint=EMBEDDINGS)
    until(client, batch.id, "in_progress")
    served.work(batch.id, "mistral", embedding="vectors")
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
    assert (batch.usage.output_tokens, batch.request_counts.failed) == (0, 2)
    errors = {row["custom_id"]: row["response"] for row in rows(client, batch.error_file_id)}
    assert "makes embeddings" in errors["generating"]["body"]["error"]["message"]
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
    options = RunnerOptions(runner_id="a", pool="mistral", is_steward=False)
    runner = Runner(ledger, engine_factory("echo", model="echo"), options)
    thread = threading.Thread(target=runner.run)
    thread.start()
    while client.batches.retrieve(batch.id).request_counts.completed == 0:
        time.sleep(0.02)
    runner.stop_now()
    thread.join(30)
    batches.end(ledger, batch.id, "expired")
    batches.finish(ledger, batch.id, runner="test")
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


def test_pages_of_files_hold_every_file_once_in_both_orders(connect: Any) -> None:
    client = connect(OTHER_KEY)
    before = {file.id for file in client.files.list()}
    made = [client.files.create(file=(f"{n}.jsonl", b"{}\n"), purpose="batch").id for n in range(11)]
    newest = [strict(FileObject, file).id for file in client.files.list(limit=3) if file.id not in before]
    oldest = [file.id for file in client.files.list(limit=3, order="asc", purpose="batch") if file.id not in before]
    assert sorted(newest) == sorted(made)
    assert newest == oldest[::-1]
    assert list(client.files.list(purpose="vision")) == []
    client.files.delete(made[5])
    assert made[5] not in [file.id for file in client.files.list(limit=2)]


def test_a_file_is_read_in_whole_and_in_part_and_removed(served: Any, client: Any) -> None:
    data = bytes(range(256)) * 5000
    file = client.files.create(
        file=("b.jsonl", data), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert file.expires_at == file.created_at + 3600
    assert strict(FileObject, client.files.retrieve(file.id)) == file
    assert client.files.content(file.id).content == data
    part = client.files.with_raw_response.content(file.id, extra_headers={"range": "bytes=100-199"})
    assert (part.http_response.status_code, part.content) == (206, data[100:200])
    assert part.headers["x-request-id"]
    assert strict(FileDeleted, client.files.delete(file.id)).deleted
    for gone in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            gone(file.id)


def test_a_batch_goes_on_when_its_file_is_removed(served: Any, client: Any) -> None:
    file = client.files.create(file=("in.jsonl", jsonl(line("a"))), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    client.files.delete(file.id)
    assert work(served, client, batch.id).status == "completed"
    with pytest.raises(openai.BadRequestError, match="input_file_id"):
        client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")


def test_ten_thousand_lines_come_in_parts_and_go_out_in_order(served: Any, client: Any) -> None:
    data = jsonl(*(line(f"r{number}") for number in range(NUM_LINES)))
    upload = client.uploads.upload_file_chunked(
        file=data,
        filename="big.jsonl",
        bytes=len(data),
        mime_type="application/jsonl",
        purpose="batch",
        part_size=500_000,
        md5=hashlib.md5(data).hexdigest(),
    )
    strict(Upload, upload)
    assert (upload.status, upload.file.bytes, upload.file.filename) == ("completed", len(data), "big.jsonl")
    assert client.files.content(upload.file.id).content == data
    batch = client.batches.create(input_file_id=upload.file.id, endpoint=CHAT, completion_window="24h")
    batch = work(served, client, batch.id)
    assert (batch.request_counts.completed, batch.error_file_id) == (NUM_LINES, None)
    for number, row in enumerate(rows(client, batch.output_file_id)):
        assert row["custom_id"] == f"r{number}"
        assert ChatCompletion.model_validate(row["response"]["body"]).object == "chat.completion"


def begin(client: Any, size: int) -> Any:
    return strict(
        Upload,
        client.uploads.create(bytes=size, filename="f", mime_type="application/jsonl", purpose="batch"),
    )


def test_parts_are_joined_in_the_order_that_is_named_and_completing_twice_is_one_file(client: Any) -> None:
    upload = begin(client, 6)
    assert upload.expires_at == upload.created_at + 3600
    second, first = (
        strict(UploadPart, client.uploads.parts.create(upload.id, data=part)).id for part in (b"def", b"abc")
    )
    one, again = (client.uploads.complete(upload.id, part_ids=[first, second]) for _ in range(2))
    assert one.file.id == again.file.id
    assert client.files.content(one.file.id).content == b"abcdef"
    for call in (lambda: client.uploads.cancel(upload.id), lambda: client.uploads.parts.create(upload.id, data=b"x")):
        with pytest.raises(openai.BadRequestError, match="completed"):
            call()


def test_an_upload_that_is_not_what_was_announced_is_refused_and_may_be_mended(client: Any) -> None:
    upload = begin(client, 4)
    part = client.uploads.parts.create(upload.id, data=b"abc").id
    rest = client.uploads.parts.create(upload.id, data=b"d").id
    with pytest.raises(openai.BadRequestError, match="3 bytes"):
        client.uploads.complete(upload.id, part_ids=[part])
    with pytest.raises(openai.BadRequestError, match="no part"):
        client.uploads.complete(upload.id, part_ids=[part, "part_x"])
    with pytest.raises(openai.BadRequestError, match="md5"):
        client.uploads.complete(upload.id, part_ids=[part, rest], md5="0" * 32)
    assert client.uploads.complete(upload.id, part_ids=[part, rest]).file.bytes == 4


def test_a_cancelled_upload_takes_nothing_more(client: Any) -> None:
    upload = begin(client, 3)
    part = client.uploads.parts.create(upload.id, data=b"abc").id
    for _ in range(2):
        assert strict(Upload, client.uploads.cancel(upload.id)).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="cancelled"):
        client.uploads.complete(upload.id, part_ids=[part])


def test_every_error_is_the_clients_own_class_with_all_its_fields(connect: Any, client: Any) -> None:
    with pytest.raises(openai.AuthenticationError) as refused:
        connect("nobody's").batches.list()
    assert (refused.value.code, refused.value.type) == ("invalid_api_key", "invalid_request_error")
    assert refused.value.request_id
    for call in (
        lambda: client.batches.retrieve("batch_" + "0" * 32),
        lambda: client.batches.retrieve("batch_0123456789ab"),
        lambda: client.batches.cancel("nonsense"),
        lambda: client.files.retrieve("file-" + "0" * 32),
        lambda: client.files.content("file-" + "0" * 32 + "-output"),
        lambda: client.uploads.cancel("upload_" + "0" * 32),
    ):
        with pytest.raises(openai.NotFoundError) as missing:
            call()
        assert list(missing.value.body) == ["message", "type", "param", "code"]
    file = client.files.create(file=("in.jsonl", b"x"), purpose="batch")
    right = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
    for wrong, param in (
        ({"endpoint": "/v1/moderations"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"input_file_id": "file-none"}, "input_file_id"),
        ({"metadata": {"a": "x" * 513}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after"),
        ({"extra_body": {"endpont": "x"}}, "endpont"),
    ):
        with pytest.raises(openai.BadRequestError) as bad:
            client.batches.create(**(right | wrong))
        assert str(bad.value.param).startswith(param), bad.value
    for more, status in (({"purpose": "fine-tune"}, 400), ({"purpose": "batch", "file": ("f", b"x" * 3_000_001)}, 413)):
        with pytest.raises(openai.APIStatusError) as refused_file:
            client.files.create(**({"file": ("f", b"x")} | more))
        assert refused_file.value.status_code == status
        assert refused_file.value.type == "invalid_request_error"


def test_a_tenant_sees_nothing_of_another(connect: Any, client: Any) -> None:
    other = connect(OTHER_KEY)
    file = client.files.create(file=("in.jsonl", jsonl(line("a"))), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    upload = begin(client, 1)
    for call in (
        lambda: other.files.content(file.id),
        lambda: other.files.delete(file.id),
        lambda: other.batches.retrieve(batch.id),
        lambda: other.batches.cancel(batch.id),
        lambda: other.uploads.complete(upload.id, part_ids=["x"]),
    ):
        with pytest.raises(openai.NotFoundError):
            call()
    with pytest.raises(openai.BadRequestError):
        other.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")


def test_a_large_file_passes_through_in_bounded_memory(start_api: Any, watch: Any) -> None:
    api = start_api()
    data = b"x" * 999_999 + b"\n"
    head = {"content-type": "multipart/form-data; boundary=xyz"}

    def body() -> Iterator[bytes]:
        yield b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="f.jsonl"\r\n\r\n'
        for _ in range(100):
            yield data
        yield b'\r\n--xyz\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--xyz--\r\n'

    api.http.get("/v1/files")
    with watch(api) as memory:
        answer = api.http.post("/v1/files", headers=head, content=body())
    assert answer.json()["bytes"] == 100_000_000
    assert memory.grown_bytes < 50_000_000


def test_a_form_may_come_in_either_order_and_in_chunks_of_unknown_length(served: Any) -> None:
    data = jsonl(line("a")) * 2000
    head = {"authorization": f"Bearer {KEY}", "content-type": "multipart/form-data; boundary=xyz"}
    file = b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="f.jsonl"\r\n\r\n' + data + b"\r\n"
    purpose = b'--xyz\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    for parts in ((file, purpose), (purpose, file)):
        body = io.BytesIO(b"".join(parts) + b"--xyz--\r\n")
        answer = served.http.post("/v1/files", headers=head, content=iter(lambda body=body: body.read(1000), b""))
        assert answer.status_code == 200, answer.text
        assert answer.json()["bytes"] == len(data)
    for body, status in ((file, 400), (purpose + b"--xyz--\r\n", 400), (b"", 400)):
        wrong = served.http.post("/v1/files", headers=head, content=body)
        assert (wrong.status_code, list(wrong.json()["error"])) == (status, ["message", "type", "param", "code"])


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


def test_a_service_that_is_full_or_has_no_store_says_so_in_the_clients_own_classes(
    start_api: Any, tmp_path: Path
) -> None:
    api = start_api(BATCHFILE_API__OPEN_BATCHES_MAX="1")
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key="x", http_client=direct(), max_retries=0) as one:
        file = one.files.create(file=("in.jsonl", jsonl(line("a"))), purpose="batch")
        batch = one.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        until(one, batch.id, "in_progress")
        with pytest.raises(openai.RateLimitError) as full:
            one.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        store = tmp_path / "store"
        store.rename(tmp_path / "away")
        store.write_text("not a directory")
        with pytest.raises(openai.InternalServerError) as down:
            one.batches.retrieve(batch.id)
    for refused, status in ((full.value, 429), (down.value, 503)):
        assert refused.status_code == status
        assert int(refused.response.headers["retry-after"]) > 0
        assert refused.request_id
        assert list(refused.body) == ["message", "type", "param", "code"]  # type: ignore[call-overload]


@pytest.fixture
def node_walk() -> list[str]:
    """The command of the Node client's walk, built."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.fail(
            "the tests of the Node client need Node 20 or newer and npm, and they are not on PATH: install Node"
        )
    if not (NODE / "node_modules" / ".bin" / "tsc").exists():
        subprocess.run([npm, "ci", "--no-audit", "--no-fund"], cwd=NODE, check=True)
    built = subprocess.run([npm, "run", "--silent", "build"], cwd=NODE, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout
    return [node, str(NODE / "build" / "openaiWalk.js")]


def test_the_node_client_does_all_that_it_can(
    served: Any, node_walk: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHFILE_ECHO_TOOL_INPUT", '{"city": "Bern"}')
    ledger = open_service_ledger(served.store, load_settings())
    tasks: dict[str, Task] = {"mistral": "generate", "vectors": "embed"}
    runners = [
        Runner(
            ledger,
            engine_factory("echo", model="echo", task=task),
            RunnerOptions(runner_id=f"{pool}-node", pool=pool, is_steward=False),
        )
        for pool, task in tasks.items()
    ]
    threads = [threading.Thread(target=runner.run) for runner in runners]
    for thread in threads:
        thread.start()
    try:
        environ = {**os.environ, "WALK_URL": served.url, "WALK_KEY": NODE_KEY}
        done = subprocess.run([*node_walk, str(tmp_path)], env=environ, capture_output=True, text=True, timeout=120)
    finally:
        for runner, thread in zip(runners, threads, strict=True):
            runner.stop_now()
            thread.join(30)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
