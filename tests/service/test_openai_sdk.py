"""OpenAI's own clients, unmodified, against a real server: errors, tenants, and all that Node's client can do."""

import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import openai
import pytest

from batchfile import Runner, RunnerOptions
from batchfile.types import Task
from tests.helpers.engine import engine_factory
from tests.helpers.settings import load_settings
from tests.helpers.store import open_service_ledger
from tests.service.openai_kit import (
    CHAT,
    NODE_KEYS,
    OTHER_KEY,
    begin,
    client,
    connect,
    direct,
    jsonl,
    line,
    served,
    until,
)

__all__ = ["client", "connect", "served"]

NODE = Path(__file__).parents[1] / "sdk-node-openai"


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
    # What is not served at all, and what misses its place because base_url does not end in /v1.
    astray = connect(base_url=str(client.base_url).rstrip("/").removesuffix("/v1"))
    for call, words in (
        (lambda: client.chat.completions.create(model="mistral", messages=[]), "/docs"),
        (lambda: client.responses.create(model="mistral", input="x"), "/docs"),
        (astray.batches.list, "base_url must end in /v1"),
        (lambda: astray.chat.completions.create(model="mistral", messages=[]), "base_url must end in /v1"),
    ):
        with pytest.raises(openai.NotFoundError, match=words) as unserved:
            call()
        assert list(unserved.value.body) == ["message", "type", "param", "code"]
        assert unserved.value.type == "invalid_request_error"
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


@pytest.fixture(scope="module")
def node_walks() -> dict[str, list[str]]:
    """The command of each major's walk, built. The current one needs Node 22, which comes with its packages."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.fail(
            "the tests of the Node client need Node 20 or newer and npm, and they are not on PATH: install Node"
        )
    node_22 = NODE / "node_modules" / ".bin" / "node"
    if not node_22.exists():
        subprocess.run([npm, "ci", "--no-audit", "--no-fund"], cwd=NODE, check=True)
    built = subprocess.run([npm, "run", "--silent", "build"], cwd=NODE, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout
    script = str(NODE / "build" / "openaiWalk.js")
    return {"current": [str(node_22), script, "current"], "old": [node, script, "old"]}


@pytest.mark.parametrize("version", NODE_KEYS)
def test_the_node_client_of_every_major_does_all_that_it_can(
    version: str, served: Any, node_walks: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHFILE_ECHO_TOOL_INPUT", '{"city": "Bern"}')
    ledger = open_service_ledger(served.store, load_settings())
    tasks: dict[str, Task] = {"mistral": "generate", "vectors": "embed"}
    runners = [
        Runner(
            ledger,
            engine_factory("echo", model="echo", task=task),
            RunnerOptions(runner_id=f"{pool}-{version}", pool=pool, is_janitor=False),
        )
        for pool, task in tasks.items()
    ]
    threads = [threading.Thread(target=runner.run) for runner in runners]
    for thread in threads:
        thread.start()
    try:
        environ = {**os.environ, "WALK_URL": served.url, "WALK_KEY": NODE_KEYS[version]}
        walk = [*node_walks[version], str(tmp_path)]
        done = subprocess.run(walk, env=environ, capture_output=True, text=True, timeout=1200)
    finally:
        for runner, thread in zip(runners, threads, strict=True):
            runner.stop_now()
            thread.join(30)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
