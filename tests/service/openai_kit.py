"""What the tests with OpenAI's own Python client share: a real server, clients of its tenants, and their steps."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from openai.types import Batch, Upload
from pydantic import BaseModel

KEY, OTHER_KEY = "key-of-acme", "key-of-other"
NODE_KEYS = {"current": "key-of-node", "old": "key-of-node-old"}  # each walk counts what it made
TENANTS = {"acme": KEY, "other": OTHER_KEY, **{f"node-{version}": key for version, key in NODE_KEYS.items()}}
KEYS = ",".join(f"{tenant}:{hashlib.sha256(key.encode()).hexdigest()}" for tenant, key in TENANTS.items())
CHAT = "/v1/chat/completions"
WAIT_S = 1200.0  # only against a hang: no test depends on a machine's speed
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
        more = {"base_url": f"{served.url}/v1", "http_client": direct(), "max_retries": 0, **more}
        made.append(openai.OpenAI(api_key=key, **more))
        return made[-1]

    yield one
    for client in made:
        client.close()


@pytest.fixture(scope="module")
def client(connect: Any) -> Any:
    return connect()


def strict(model: Any, found: Any) -> Any:
    """What came over the wire has every key and fits strictly: the client itself keeps whatever came, unchecked."""
    assert isinstance(found, model)
    model.model_validate_json(json.dumps(found.to_dict()), strict=True)
    assert missing_in(found) == set()
    return found


def missing_in(found: Any) -> set[str]:
    """Keys of the client's models, at any depth, that did not come."""
    if isinstance(found, list):
        return set[str]().union(*map(missing_in, found))
    if not isinstance(found, BaseModel):
        return set()
    own = {f"{type(found).__name__}.{name}" for name in type(found).model_fields.keys() - found.model_fields_set}
    return own.union(*(missing_in(getattr(found, name)) for name in found.model_fields_set))


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


def begin(client: Any, size: int) -> Any:
    return strict(
        Upload,
        client.uploads.create(bytes=size, filename="f", mime_type="application/jsonl", purpose="batch"),
    )
