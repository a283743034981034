"""Nothing says a secret: a real service with planted secrets, and all that it wrote and answered."""

import hashlib
import json
import os
import re
import socket
import time
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from batchfile.errors import SettingsError
from tests import warm
from tests.contract import chat_server
from tests.contract.conftest import free_port
from tests.helpers.settings import load_settings
from tests.warm import Warm

ROOT = Path(__file__).parents[2]
WAIT_S = 1200.0  # only against a hang: no test depends on a machine's speed
KEY = "bf_canary-of-the-caller"
WRONG_KEY = "bf_canary-of-a-stranger"
POOL_KEY = "sk-canary-of-the-pool"
HOOK = "whsec_Y2FuYXJ5LW9mLXRoZS1ob29r"
SECRETS = (KEY, WRONG_KEY, POOL_KEY, HOOK, HOOK.removeprefix("whsec_"), "canary-of-the-hook")
PROMPT, SYSTEM, NAME = "canary-in-a-prompt", "canary-in-a-system", "canary-in-a-custom-id"
PRIVATE = (PROMPT, SYSTEM, NAME)


class Said(NamedTuple):
    """What the whole run wrote and answered. `batch`: its status; `store`: every object, by its key."""

    logs: str
    answers: dict[str, str]
    batch: str
    results: str
    store: dict[str, bytes]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory, serve_api: Any) -> Said:
    with chat_server.running() as endpoint:
        wrong = {"error": {"message": f"you sent {POOL_KEY} with {PROMPT}"}}
        endpoint.script.append({"status": 400, "text": json.dumps(wrong)})
        return run(tmp_path_factory.mktemp("runner"), serve_api, endpoint.url)


def run(folder: Path, serve_api: Any, endpoint: str) -> Said:
    pool = {"MISTRAL_BASE_URL": endpoint, "MISTRAL_API_KEY": POOL_KEY}
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    hooks = json.dumps({"acme": {"url": "http://127.0.0.1:9/canary", "secret": HOOK}})
    settings = pool | {"BATCHFILE_API_KEYS": f"acme:{digest}", "BATCHFILE_WEBHOOKS": hooks}
    api = serve_api(**settings)
    port = free_port()
    arguments = ["--pool", "mistral", "--store", api.store, "--metrics-port", str(port)]
    log = folder / "log"
    with log.open("wb") as file:
        environ = {**os.environ, **settings, "PYTHONPATH": str(ROOT)}
        runner = Warm("runners", arguments, cwd=folder, env=environ, stdout=file, stderr=file)
    try:
        mine = {"x-api-key": KEY}
        message = {"system": SYSTEM, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 8}
        wrong = {**message, "max_tokens": 0}
        asked = [{"custom_id": f"{NAME}-{n}", "params": wrong if n == 2 else message} for n in range(3)]
        batch_id = api.submit("email", asked, **mine)
        until(lambda: api.http.get(f"/api/batches/{batch_id}", headers=mine).json()["state"] == "ended", log)
        until(lambda: api.http.get("/api/runners", headers=mine).json(), log)  # as of some seconds ago
        answers = {
            path: api.http.get(path, headers=mine).text
            for path in ("/api/pools", "/api/pools/mistral", "/api/runners", "/v1/models")
        }
        answers |= {path: api.http.get(path).text for path in ("/metrics", "/healthz", "/openapi.json", "/docs")}
        answers["runner's /metrics"] = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        refused = [{"authorization": f"Bearer {WRONG_KEY}"}, {"x-api-key": WRONG_KEY}]
        for path in ("/api/batches", "/v1/files"):
            answers |= {f"{path} {n}": api.http.get(path, headers=headers).text for n, headers in enumerate(refused)}
        body = {"stage": "email", "requests": [{"custom_id": NAME, "params": PROMPT, "x": PROMPT}]}
        api.http.post("/v1/messages/batches", json=body, headers=mine)
        answers["config show"] = shown(folder, settings)
        batch = api.http.get(f"/api/batches/{batch_id}", headers=mine).text
        results = api.http.get(f"/api/batches/{batch_id}/results", headers=mine).text
    finally:
        runner.terminate()
        runner.wait(WAIT_S)
    files = [path for path in Path(api.store).rglob("*") if path.is_file()]
    store = {str(path.relative_to(api.store)): path.read_bytes() for path in files}
    return Said(api.log.read_text() + log.read_text(), answers, batch, results, store)


def until(is_so: Any, log: Path) -> None:
    ends_at = time.monotonic() + WAIT_S
    while not is_so():
        if time.monotonic() > ends_at:
            pytest.fail(log.read_text()[-3000:])
        time.sleep(0.1)


def shown(folder: Path, settings: dict[str, str]) -> str:
    done = warm.run("batchfile", ["config", "show"], cwd=folder, env={**os.environ, **settings})
    assert done.returncode == 0
    return done.stdout.decode()


def test_no_secret_is_in_a_log_an_answer_or_the_store(said: Said) -> None:
    texts = {"logs": said.logs, "batch": said.batch, "results": said.results, **said.answers}
    texts |= {key: data.decode("utf-8", "replace") for key, data in said.store.items()}
    for where, text in texts.items():
        assert not [secret for secret in SECRETS if secret in text], where
    assert "you sent ***" in said.results, "the endpoint's own words, without our key"


def test_no_prompt_and_no_custom_id_is_in_a_log_or_where_no_batch_is_asked_for(said: Said) -> None:
    for where, text in {"logs": said.logs, **said.answers}.items():
        assert not [private for private in PRIVATE if private in text], where
    assert len(re.findall(NAME, said.results)) == 3
    assert NAME in said.batch, "an example of each reason, for those who may read the results"


def test_a_heartbeat_record_tells_of_no_request_and_no_address(said: Said) -> None:
    (runner,) = json.loads(said.answers["/api/runners"])
    assert runner["engine"] == "http"
    assert not runner.get("shards")
    assert "127.0.0.1" not in json.dumps(runner)
    assert socket.gethostname() not in json.dumps(runner), "the machines are the operator's"


def test_a_receipt_has_no_key_and_no_prompt(tmp_path: Path) -> None:
    line = {"custom_id": "a", "params": {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 8}}
    (tmp_path / "in.jsonl").write_text(json.dumps(line) + "\n")
    with chat_server.running() as endpoint:
        arguments = ["run", "in.jsonl", "-o", "out.jsonl", "--engine", "http", "--base-url", endpoint.url]
        environ = {**os.environ, "OPENAI_API_KEY": POOL_KEY}
        done = warm.run("batchfile", [*arguments, "--model", "m"], cwd=tmp_path, env=environ)
        assert done.returncode == 0, done.stderr
        assert POOL_KEY in endpoint.seen[0]["headers"]["Authorization"]
    receipt = (tmp_path / "out.jsonl.receipt.json").read_text()
    for text in (receipt, done.stdout.decode(), done.stderr.decode()):
        assert POOL_KEY not in text
        assert PROMPT not in text
    stored = [path for path in (tmp_path / ".batchfile").rglob("*") if path.is_file()]
    assert not [path for path in stored if POOL_KEY.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BATCHFILE_API_KEYS", "canary"),
        ("BATCHFILE_API_KEYS", "acme:canary"),
        ("BATCHFILE_API_KEYS", '[{"tenant": "acme", "sha256": "canary"}]'),
        ("BATCHFILE_API_KEYS", "acme:canary:nonsense"),
        ("BATCHFILE_WEBHOOKS", "canary"),
        ("BATCHFILE_WEBHOOKS", '{"acme": "canary"}'),
        ("BATCHFILE_WEBHOOKS", '{"acme": {"url": "http://x", "secret": "canary"}}'),
        ("BATCHFILE_WEBHOOKS", '{"acme": {"url": "http://x", "secret": "canary"'),
        ("BATCHFILE_WEBHOOKS__ACME", "canary"),
        ("BATCHFILE_WEBHOOKS__ACME__SECRET", "canary"),
        ("BATCHFILE_WEBHOOKS__ACME__SECRTE", "canary"),
        ("BATCHFILE_POOLS__MISTRAL", "canary"),
        ("BATCHFILE_POOLS__MISTRAL__APIKEY", "canary"),
        ("BATCHFILE_POOLS__MISTRAL__BASE_URL", "http://user:canary@x/v1"),
        ("MISTRAL_BASE_URL", "http://user:canary@x/v1"),
        ("BATCHFILE_RUN__BASE_URL", "http://user:canary@x/v1"),
    ],
)
def test_a_setting_that_is_refused_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert "canary" not in str(refused.value)
