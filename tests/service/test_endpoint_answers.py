"""What each API format shows of an endpoint's odd answers: refusals, filters, unknown usage, errors and their status.

An endpoint answers by the prompt; a batch is made in each format, run, and its results are compared, word for word,
with tests/golden/answers. `RECORD_GOLDEN=1` writes the files anew.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anthropic.types.messages import MessageBatchIndividualResponse
from openai.types.chat import ChatCompletion

from batchfile import Runner, RunnerOptions
from tests.contract import chat_server
from tests.helpers.endpoint import HttpEngine, HttpOptions
from tests.helpers.settings import load_settings
from tests.helpers.store import open_service_ledger
from tests.service.openai_kit import CHAT, KEY, KEYS, client, connect, submit, until
from tests.service.test_run_commands import batchfile

__all__ = ["client", "connect"]

CASES = Path(__file__).parents[1] / "cases"
GOLDEN = Path(__file__).parents[1] / "golden" / "answers"
BATCHES = "/v1/messages/batches"
HEADERS = {"authorization": f"Bearer {KEY}"}
FORMATS = ("anthropic", "stage", "native", "openai")
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
LARGE = "Request too large for m on tokens per min (TPM): Limit 30000, Requested 35000."

_ID = re.compile(r"(msg|msgbatch|batch|req_batch|batch_req_batch|chatcmpl-batch)_[0-9A-Za-z]{12,32}")
_CREATED = re.compile(r'("created": )\d{10}\b')


def told(body: Any, status: int = 200) -> dict[str, Any]:
    return {"status": status, "text": body if isinstance(body, str) else json.dumps(body)}


def answer(content: Any, reason: str = "stop", usage: Any = USAGE, **message: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": content} | message, "finish_reason": reason}
    return told({"choices": [choice], "usage": usage})


def error(message: str, status: int, **more: Any) -> dict[str, Any]:
    return told({"error": {"message": message} | more}, status)


ANSWERS = {
    "plain": answer("Fine."),
    "filter": answer("So far", "content_filter"),
    "filter_without_text": answer("", "content_filter"),
    "refusal": answer(None, refusal="I cannot help with that."),
    "null": answer(None),
    "usage_missing": answer("Fine.", usage=None),
    "usage_partly": answer("Fine.", usage={"prompt_tokens": 3, "completion_tokens": None}),
    "error_in_200": error("The prompt is too long.", 200, type="invalid_request_error", code="context_length_exceeded"),
    "error_in_200_without_type": error("The server is overloaded.", 200),
    "status_404": error("The model does not exist.", 404),
    "status_413": told("Request Entity Too Large", 413),
    "status_422": error("The body has an unknown field.", 422),
    "status_429": error(LARGE, 429),
    "status_500": error("Out of memory.", 500),
}


@pytest.fixture(scope="module")
def served(serve_api: Any) -> Any:
    return serve_api(
        BATCHFILE_API_KEYS=KEYS,
        BATCHFILE_POOLS=json.dumps({"mistral": {"model": "served"}}),
        BATCHFILE_STAGES=json.dumps({"email": "mistral"}),
    )


@pytest.fixture
def endpoint() -> Iterator[Any]:
    with chat_server.running() as server:
        server.by_prompt = ANSWERS
        yield server


def work(served: Any, batch_id: str, url: str) -> None:
    """Run it to its end, one request after the other: the first proves that the endpoint serves requests."""
    options = HttpOptions(base_url=url, model="served", concurrency=1, backoff_s=0.001)
    runner = RunnerOptions(runner_id="test", pool="mistral", only=batch_id, is_janitor=False)
    Runner(open_service_ledger(served.store, load_settings()), lambda: HttpEngine(options), runner).run()


def made(served: Any, client: Any, format_: str) -> str:
    messages = {name: [{"role": "user", "content": name}] for name in ANSWERS}
    if format_ == "openai":
        lines = [
            {"custom_id": name, "method": "POST", "url": CHAT, "body": {"model": "mistral", "messages": turns}}
            for name, turns in messages.items()
        ]
        batch_id: str = submit(client, *lines).id
        until(client, batch_id, "in_progress")
        return batch_id
    params = {name: {"model": "mistral", "max_tokens": 9, "messages": turns} for name, turns in messages.items()}
    requests = [{"custom_id": name, "params": asked} for name, asked in params.items()]
    body: dict[str, Any] = {"requests": requests} | ({"stage": "email"} if format_ == "stage" else {})
    headers = HEADERS | ({} if format_ == "stage" else {"anthropic-version": "2026-10-21"})
    created = served.http.post(BATCHES, json=body, headers=headers)
    assert created.status_code == 200, created.text
    found: str = created.json()["id"]
    return found


def results(served: Any, client: Any, format_: str, batch_id: str) -> list[Any]:
    if format_ == "openai":
        batch = client.batches.retrieve(batch_id)
        texts = [client.files.content(file_id).text for file_id in (batch.output_file_id, batch.error_file_id)]
        return [json.loads(row) for text in texts for row in text.splitlines()]
    if format_ == "stage":
        found: list[Any] = served.http.get(f"{BATCHES}/{batch_id}/results", headers=HEADERS).json()["results"]
        return found
    path, headers = f"{BATCHES}/{batch_id}/results", HEADERS | {"anthropic-version": "2026-10-21"}
    if format_ == "native":
        path, headers = f"/api/batches/{batch_id}/results", HEADERS
    return [json.loads(row) for row in served.http.get(path, headers=headers).text.splitlines()]


@pytest.mark.parametrize("format_", FORMATS)
def test_each_api_format_shows_an_answer_as_what_it_is(served: Any, client: Any, endpoint: Any, format_: str) -> None:
    batch_id = made(served, client, format_)
    work(served, batch_id, endpoint.url)
    text = json.dumps(results(served, client, format_, batch_id), indent=2, ensure_ascii=False) + "\n"
    text = _CREATED.sub(r"\g<1>1800000000", _ID.sub(r"\g<1>_ID", text))
    file = GOLDEN / f"{format_}.json"
    if os.environ.get("RECORD_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text()

    status = served.http.get(f"/api/batches/{batch_id}", headers=HEADERS).json()
    num_errored = sum(_is_errored(line) for line in json.loads(text))
    assert (status["succeeded"], status["errored"]) == (len(ANSWERS) - num_errored, num_errored)
    assert status["usage_unknown"] == 2
    if format_ == "openai":
        assert client.batches.retrieve(batch_id).usage is None
    if format_ == "stage":
        counts = served.http.get(f"{BATCHES}/{batch_id}", headers=HEADERS).json()["counts"]
        assert (counts["succeeded"], counts["errored"]) == (len(ANSWERS) - num_errored, num_errored)


def _is_errored(line: dict[str, Any]) -> bool:
    if "response" in line:
        return bool(line["response"]["status_code"] != 200)
    return "errored" in (line.get("status"), line.get("result", {}).get("type"))


def test_a_local_run_shows_the_answers_of_the_case_as_what_they_are(tmp_path: Path, endpoint: Any) -> None:
    null = {"prompt_tokens": 3, "completion_tokens": None, "prompt_tokens_details": None}
    endpoint.by_prompt = {
        "trunc": told('{"choices": [{"mess'),
        "empty-choices": told({"choices": []}),
        "content-null": answer(None),
        "content-list": answer([{"type": "text", "text": "as list"}]),
        "no-usage": told({"choices": json.loads(answer("fine")["text"])["choices"]}),
        "usage-null": answer("fine", usage=None),
        "usage-nested-null": answer("fine", usage=null),
    }
    (tmp_path / "in.jsonl").write_bytes((CASES / "http-odd-answers.jsonl").read_bytes())
    arguments = ("--engine", "http", "--base-url", endpoint.url, "--model", "served")
    done = batchfile(tmp_path, "run", "in.jsonl", "-o", "out.jsonl", *arguments)
    assert done.returncode == 3, done.stderr
    assert b"usage unknown for 3 results" in done.stderr
    rows = [json.loads(row) for row in (tmp_path / "out.jsonl").read_text().splitlines()]
    failed = [row["custom_id"] for row in rows if row["response"]["status_code"] != 200]
    assert failed == ["trunc", "empty-choices", "content-null"]
    unknown = [row["custom_id"] for row in rows if row["response"]["body"].get("usage", {}) is None]
    assert unknown == ["no-usage", "usage-null", "usage-nested-null"]
    assert json.loads((tmp_path / "out.jsonl.receipt.json").read_text())["usage"]["unknown"] == 3


def test_the_golden_answers_fit_the_clients_types() -> None:
    for line in json.loads((GOLDEN / "anthropic.json").read_text()):
        MessageBatchIndividualResponse.model_validate_json(json.dumps(line), strict=True)
    for line in json.loads((GOLDEN / "openai.json").read_text()):
        if line["response"]["status_code"] == 200:
            ChatCompletion.model_validate_json(json.dumps(line["response"]["body"]), strict=True)
