"""Keys, turns and raw prompts from bug reports in every entry point: each runs, or fails alone by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.service.openai_kit import client, connect, rows, served, submit, until, work
from tests.service.test_cases import CASES, HEADERS, command, posted, ran

__all__ = ["client", "connect", "served"]

# The lines that fail, and what the message begins with; all others run.
KEYS = {
    "k-functions-old": "body.function_call: is deprecated and not supported; use tools",
    "k-max_tokens-minus-1": "body.max_tokens: must be at least 1, got -1",
    "k-n-0": "body.n: must be at least 1, got 0",
    "k-reasoning-object": "body.reasoning: is not supported here; use reasoning_effort",
    "k-stream": "body.stream: streaming is not supported in a batch; remove it or set it to false",
    "k-temperature-3": "body.temperature: must be at most 2, got 3",
    "k-top_p-0": "body.top_p: must be greater than 0, got 0",
}
TURNS = {
    "t-capital-role": 'body.messages[0].role: must be "system", "developer", "user", "assistant" or "tool", got "User"',
    "t-empty-parts": "body.messages[0].content: must not be empty",
    "t-file-part": "body.messages[0].content[0].file: documents of type application/pdf cannot be read; only text can",
    "t-function-role": "body.messages[1].role: must be ",
    "t-human-role": "body.messages[0].role: is missing",
    "t-image_url-data": '"data:image/png;base64": is not an image in PNG, JPEG',
    "t-input_audio": '"data:audio/wav;base64": is not a recording in WAV (PCM), the only format that is decoded: it',
}
# This engine does not follow a schema.
SCHEMAS = dict.fromkeys(("k-rf-json_object", "k-rf-schema-strict"), "Output validation failed: the answer is not JSON")
RAW = {
    "p2": "body.prompt: has 2 prompts; put each prompt on its own line",
    "p4": "body.prompt: must not be empty",
}
VECTORS = {
    "e3": "body.input: must not be empty",
    "e4": "body.input: must not be empty",
    "e5": "body.input: item [1] must not be empty",
    "e7": "body.input_type: unknown field; remove it",
    "e8": "body.input: is missing",
}
PARAMS = {
    "g-betas": "params.betas: beta features are not supported; remove it",
    "g-image": '"data:image/png;base64": is not an image in PNG, JPEG',
    "g-max_tokens_to_sample": "params.messages: is missing",
}


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (CASES / name).read_text().splitlines()]


def asked(prefix: str) -> list[dict[str, Any]]:
    """Those of OpenAI's format, for the service's pools. The image on another server is the business of other tests."""
    model = "vectors" if prefix == "e" else "mistral"
    found = [line for line in lines("requests-openai.jsonl") if line["custom_id"].startswith(prefix)]
    return [line | {"body": line["body"] | {"model": model}} for line in found if "url-http" not in line["custom_id"]]


def as_jsonl(found: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in found)


def check(results: list[dict[str, Any]], failed: dict[str, str], num: int) -> None:
    """`results`: of OpenAI's format. Each of `num` lines has one."""
    assert len({row["custom_id"] for row in results}) == len(results) == num
    told = {
        row["custom_id"]: row["response"]["body"]["error"]["message"]
        for row in results
        if row["response"]["status_code"] != 200
    }
    assert told.keys() == failed.keys(), told
    for name, start in failed.items():
        assert told[name].startswith(start), told[name]


OPENAI = [("k", KEYS | SCHEMAS), ("t", TURNS), ("p", RAW), ("e", VECTORS)]


@pytest.mark.parametrize(("prefix", "failed"), OPENAI, ids=[prefix for prefix, _ in OPENAI])
def test_a_line_of_openais_format_runs_or_fails_by_name(
    tmp_path: Path, served: Any, client: Any, prefix: str, failed: dict[str, str]
) -> None:
    given = asked(prefix)
    task = ["--task", "embed"] if prefix == "e" else []
    done = command(tmp_path, as_jsonl(given), "run", "-o", "out.jsonl", "--engine", "echo", "--restart", *task)
    assert done.returncode == 3, done.stderr
    check([json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()], failed, len(given))

    # A runner of a service reads no media for a tenant without rules of its own, and says so.
    in_service = {name: start for name, start in failed.items() if not start.startswith('"data:')}
    of_media = failed.keys() - in_service.keys()
    kept = [line for line in given if line["custom_id"] not in of_media]
    batch = submit(client, *kept, endpoint=given[0]["url"])
    if prefix == "e":
        until(client, batch.id, "in_progress")
        served.work(batch.id, embedding="vectors")
        batch = until(client, batch.id, "completed")
    else:
        batch = work(served, client, batch.id)
    results = [row for name in (batch.output_file_id, batch.error_file_id) for row in rows(client, name)]
    check(results, in_service, len(kept))


def test_a_line_of_params_runs_or_fails_by_name(tmp_path: Path, served: Any) -> None:
    given = lines("requests-params.jsonl")
    results = ran(tmp_path, as_jsonl(given))
    told = {row["custom_id"]: row["error"]["message"] for row in results if row["status"] != "succeeded"}
    assert (told.keys(), len(results)) == (PARAMS.keys(), len(given))
    assert [told[name].startswith(start) for name, start in PARAMS.items()] == [True] * len(PARAMS), told

    kept = [
        line | {"params": line["params"] | {"model": "mistral"}} for line in given if "image" not in line["custom_id"]
    ]
    made = posted(served, *kept)
    assert made.status_code == 200, made.text
    batch_id = made.json()["id"]
    served.work(batch_id, "mistral")
    found = served.http.get(f"/api/batches/{batch_id}/results", headers=HEADERS).text.splitlines()
    failed = {row["custom_id"]: row["error"]["message"] for row in map(json.loads, found) if row["error"]}
    assert (len(found), failed.keys()) == (len(kept), PARAMS.keys() - {"g-image"})


def test_embeddings_are_rejected_before_a_model_that_generates_is_loaded(tmp_path: Path) -> None:
    given = asked("e")
    for row in ran(tmp_path, as_jsonl(given)):
        message = row["response"]["body"]["error"]["message"]
        assert "/v1/embeddings is not served with task = 'generate', which serves /v1/chat/completions and" in message
