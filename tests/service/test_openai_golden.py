"""What OpenAI's Python client and the service say to each other, word for word, as recorded in tests/golden/openai.

Ids, times and the multipart boundary are written as placeholders. `RECORD_GOLDEN=1` writes the files anew.
"""

import base64
import json
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.helpers.service import Event, signed_headers

GOLDEN = Path(__file__).parents[1] / "golden" / "openai"
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
HEADERS = ("accept", "content-type", "range", "x-stainless-retry-count")
SECRET = "whsec_" + base64.b64encode(b"a secret of thirty-two bytes ...").decode()
WAIT_S = 1200.0  # only against a hang: no test depends on a machine's speed

_ID = re.compile(r"(file-|batch_|upload_|part_|req_)([0-9a-f]{24,32})")
_TIME = re.compile(r'("(?:created|[a-z_]+_at)": )\d{10}\b')
_BOUNDARY = re.compile(r"boundary=([0-9a-f]+)")


class Recorder:
    """Keeps each exchange of a client under the name that was set before it."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.found: dict[str, Any] = {}
        self._ids: dict[str, str] = {}

    def hear(self, response: Any) -> None:
        response.read()
        if self.name is None:
            return
        request = response.request
        body = request.read()
        asked = {
            "method": request.method,
            "path": request.url.raw_path.decode(),
            "headers": {name: request.headers[name] for name in HEADERS if name in request.headers},
        } | self._body(body)
        answered = {"status": response.status_code} | self._body(response.content)
        text = json.dumps({"request": asked, "response": answered}, indent=2, ensure_ascii=False)
        for boundary in set(_BOUNDARY.findall(text)):
            text = text.replace(boundary, "BOUNDARY")
        self.found[self.name] = _TIME.sub(r"\g<1>1800000000", _ID.sub(self._placeholder, text)) + "\n"
        self.name = None

    @staticmethod
    def _body(data: bytes) -> dict[str, Any]:
        if not data:
            return {}
        with suppress(ValueError):
            return {"body": json.loads(data)}
        with suppress(ValueError):
            return {"lines": [json.loads(line) for line in data.decode().splitlines()]}
        return {"text": data.decode()}

    def _placeholder(self, match: re.Match[str]) -> str:
        return match[1] + self._ids.setdefault(match[2], f"{len(self._ids) + 1:0{len(match[2])}x}")


def line(custom_id: str, **more: Any) -> str:
    body = {"model": "mistral", "messages": [{"role": "user", "content": "Zoë ☕"}], "max_tokens": 8} | more
    return request_line(custom_id, CHAT, body)


def request_line(custom_id: str, url: str, body: dict[str, Any]) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body}, ensure_ascii=False) + "\n"


def test_the_recorded_exchanges_are_what_client_and_service_say(
    start_api: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHFILE_ECHO_TOOL_INPUT", '{"city": "Zürich"}')
    pools = {"mistral": {"model": "org/mistral"}, "llama-70b": {"model": "org/vectors", "task": "embed"}}
    api = start_api(BATCHFILE_POOLS=json.dumps(pools))
    recorder = Recorder()
    http = openai.DefaultHttpxClient(trust_env=False, event_hooks={"response": [recorder.hear]})
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key="x", http_client=http, max_retries=0) as client:
        talk(api, client, recorder)
        talk_of_kinds(api, client, recorder)
    webhook = json.dumps(recorded_webhook(), indent=2, ensure_ascii=False) + "\n"
    found = recorder.found | {"webhook": webhook}
    if os.environ.get("RECORD_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        for name, text in found.items():
            (GOLDEN / f"{name}.json").write_text(text)
    assert sorted(found) == sorted(path.stem for path in GOLDEN.glob("*.json"))
    for name, text in found.items():
        assert text == (GOLDEN / f"{name}.json").read_text(), name


def until_of(client: openai.OpenAI) -> Callable[..., Any]:
    def until(batch_id: str, *states: str) -> Any:
        deadline = time.monotonic() + WAIT_S
        while (batch := client.batches.retrieve(batch_id)).status not in states:
            assert time.monotonic() < deadline, batch
            time.sleep(0.02)
        return batch

    return until


def talk_of_kinds(api: Any, client: openai.OpenAI, recorder: Recorder) -> None:
    """What the lines of each endpoint ask, and their answers: calls of tools, schemas, raw prompts, vectors."""
    until = until_of(client)
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    prompts = [{"prompt": "one two three", "max_tokens": 2, "n": 2}, {"prompt": [1, 2]}, {"prompt": ["a", "b"]}]
    inputs = [{"input": "Zoë", "dimensions": 2}, {"input": [[1, 2], [3]], "encoding_format": "base64", "dimensions": 2}]
    asked = {
        "tools": (CHAT, [line("call", tools=tools)]),
        "completions": (COMPLETIONS, lines_of(COMPLETIONS, "mistral", prompts)),
        "embeddings": (EMBEDDINGS, lines_of(EMBEDDINGS, "llama-70b", inputs)),
        "schemas": (CHAT, [schema_line("fits", '{"a":"fine"}'), schema_line("does_not", '{"a":"bad"}')]),
    }
    for kind, (endpoint, lines) in asked.items():
        file = client.files.create(file=(f"{kind}.jsonl", "".join(lines).encode()), purpose="batch")
        recorder.name = f"{kind}_input"
        client.files.content(file.id)
        made = client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")  # type: ignore[arg-type]
        until(made.id, "in_progress")
        if kind == "embeddings":
            api.work(made.id, embedding="llama-70b")
        else:
            api.work(made.id)
        batch = until(made.id, "completed")
        recorder.name = f"{kind}_output"
        client.files.content(batch.output_file_id)
        if kind == "schemas":
            recorder.name = f"{kind}_errors"
            client.files.content(batch.error_file_id)


def schema_line(custom_id: str, text: str) -> str:
    """No guide enforces this pattern."""
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(?!bad)"}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    return line(custom_id, messages=[{"role": "user", "content": text}], response_format=form)


def lines_of(url: str, model: str, bodies: list[dict[str, Any]]) -> list[str]:
    return [request_line(f"r{number}", url, {"model": model} | body) for number, body in enumerate(bodies)]


def talk(api: Any, client: openai.OpenAI, recorder: Recorder) -> None:
    until = until_of(client)

    recorder.name = "file_create"
    content = line("good") + line("bad", max_tokens=0)
    file = client.files.create(file=("leads.jsonl", content.encode()), purpose="batch")
    recorder.name = "file_retrieve"
    client.files.retrieve(file.id)
    recorder.name = "file_list"
    client.files.list(purpose="batch", limit=1)
    recorder.name = "file_content"
    client.files.content(file.id)

    made = client.batches.create(
        input_file_id=file.id, endpoint=CHAT, completion_window="24h", metadata={"customer": "Jürgen"}
    )
    until(made.id, "in_progress")
    recorder.name = "batch_in_progress"
    client.batches.retrieve(made.id)
    api.work(made.id)
    batch = until(made.id, "completed")
    recorder.name = "batch_completed"
    client.batches.retrieve(made.id)
    recorder.name = "batch_output"
    client.files.content(batch.output_file_id)
    recorder.name = "batch_errors"
    client.files.content(batch.error_file_id)
    recorder.name = "batch_list"
    client.batches.list(limit=1)

    broken = client.files.create(file=("broken.jsonl", (line("a") + "{\n" + line("a")).encode()), purpose="batch")
    recorder.name = "batch_create"
    failed = client.batches.create(input_file_id=broken.id, endpoint=CHAT, completion_window="24h")
    until(failed.id, "failed")
    recorder.name = "batch_failed"
    client.batches.retrieve(failed.id)
    recorder.name = "file_delete"
    client.files.delete(broken.id)

    recorder.name = "upload_create"
    upload = client.uploads.create(bytes=3, filename="f", mime_type="application/jsonl", purpose="batch")
    recorder.name = "upload_part"
    part = client.uploads.parts.create(upload.id, data=b"abc")
    recorder.name = "upload_complete"
    client.uploads.complete(upload.id, part_ids=[part.id])

    recorder.name = "not_found"
    with suppress(openai.NotFoundError):
        client.batches.retrieve("batch_none")
    recorder.name = "bad_request"
    with suppress(openai.BadRequestError):
        client.batches.create(input_file_id=file.id, endpoint="/v1/moderations", completion_window="24h")  # type: ignore[arg-type]


def recorded_webhook() -> dict[str, Any]:
    body = '{"id":"evt_1","object":"event","type":"batch.failed","created_at":1800000000,"data":{"id":"batch_1"}}'
    event = Event(event_id="evt_1", type="batch.failed", body=body.encode())
    return {"headers": signed_headers(event, SECRET, 1_800_000_000.0), "body": body, "secret": SECRET}
