"""Reusing the results of earlier batches: through the command, the service and OpenAI's client, in real processes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.service.openai_kit import OTHER_KEY, client, connect, served, submit, work
from tests.service.openai_kit import line as openai_line
from tests.service.remote_kit import Shell, jsonl, line

__all__ = ["client", "connect", "served"]


@pytest.fixture
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Shell:
    if request.param == "service":
        api = request.getfixturevalue("api")
        return Shell(tmp_path, ["--url", api.url], api.store)
    return Shell(tmp_path, ["--store", "st"], str(tmp_path / "st"))


def over(*places: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("shell", places, indirect=True)


@over("service", "directory")
def test_a_submitted_file_keeps_the_results_of_a_batch(shell: Shell) -> None:
    given = [line(f"r{number}") for number in range(40)]
    first = shell.id_of("submit", "-", "--stage", "email", stdin=jsonl(*given))
    shell.work(first)
    changed = [line("new"), *reversed(given[:30]), {**given[30], "custom_id": "renamed"}]
    said = shell.run("submit", "-", "--stage", "email", "--reuse", first, stdin=jsonl(*changed))
    assert f"31 of 32 reused from {first}\n" in said.stderr.decode()
    second = said.stdout.decode().strip()
    (status,) = shell.json("status", second)
    assert (status["reused"], status["succeeded"], status["pending"]) == ({first: 31}, 31, 1)
    assert b"31 reused" in shell.run("status", second).stdout
    shell.run("delete", first, "--now")
    shell.work(second)
    results = [json.loads(row) for row in shell.run("results", second).stdout.splitlines()]
    assert [row["custom_id"] for row in results] == [row["custom_id"] for row in changed]
    assert results[-1]["message"]["content"][0]["text"] == "Write to r30."
    (status,) = shell.json("status", second)
    assert (status["succeeded"], status["output_tokens"]) == (32, 3), "what was reused costs no tokens"
    gone = shell.run("submit", "-", "--stage", "email", "--reuse", first, stdin=jsonl(line("a")), code=4)
    assert f"reuse: nothing can be reused from {first}: it was deleted".encode() in gone.stderr
    unknown = shell.run("submit", "-", "--stage", "email", "--reuse", "batch_0", stdin=jsonl(line("a")), code=2)
    assert b"reuse: there is no batch 'batch_0'" in unknown.stderr
    auto = shell.run("submit", "-", "--stage", "email", "--reuse", "auto", stdin=jsonl(*changed))
    assert b"note: nothing was reused: the results of " in auto.stderr
    assert b" of 32 reused" not in auto.stderr
    assert b"it is unknown which model would run now" in auto.stderr


@over("service", "directory")
def test_a_batch_whose_results_are_all_reused_ends_without_a_runner(shell: Shell) -> None:
    given = [line(f"r{number}") for number in range(3)]
    first = shell.id_of("submit", "-", "--stage", "email", stdin=jsonl(*given))
    shell.work(first)
    second = shell.id_of("submit", "-", "--stage", "email", "--reuse", first, "--wait", stdin=jsonl(*given))
    (status,) = shell.json("status", second)
    assert (status["state"], status["succeeded"], status["reused"]) == ("ended", 3, {first: 3})


def test_openais_client_asks_for_it_in_the_body(
    served: Any, client: Any, connect: Callable[..., openai.OpenAI]
) -> None:
    given = [openai_line(f"r{number}", temperature=0) for number in range(5)]
    first = work(served, client, submit(client, *given).id)
    asked = {"extra_body": {"reuse": first.id}}
    second = submit(client, *given, openai_line("new", seed=4), **asked)
    second = work(served, client, second.id)
    assert (second.request_counts.completed, second.usage.output_tokens) == (6, 4)
    status = served.http.get(f"/api/batches/{second.id}", headers={"authorization": f"Bearer {client.api_key}"}).json()
    assert status["reused"] == {first.id: 5}
    with pytest.raises(openai.NotFoundError, match="reuse: there is no batch"):
        submit(connect(OTHER_KEY), *given, **asked)
    with pytest.raises(openai.BadRequestError, match="reuse"):
        submit(client, *given, extra_body={"reuse": 7})
    with pytest.raises(openai.BadRequestError, match="reuse: send it in the body"):
        submit(client, *given, extra_query={"reuse": first.id})


@pytest.mark.parametrize("stage", ["email", None])
def test_the_stage_and_anthropics_routes_take_it_in_the_url(api: Any, stage: str | None) -> None:
    headers = {} if stage else {"anthropic-version": "2023-06-01"}
    kind = {"stage": stage} if stage else {}

    def post(*names: str, code: int = 200, more: dict[str, str] | None = None, **query: str) -> Any:
        requests = [line(name, model="mistral", temperature=0) for name in names]
        for request in requests if stage else ():
            del request["params"]["model"]
        body = {**kind, "requests": requests, **(more or {})}
        answer = api.http.post("/v1/messages/batches", json=body, params=query, headers=headers)
        assert answer.status_code == code, answer.text
        return answer.json()

    first = post("a", "b")["id"]
    api.work(first)
    second = post("b", "c", "a", reuse=first)["id"]
    status = api.http.get(f"/api/batches/{second}").json()
    assert (status["reused"], status["pending"]) == ({first: 2}, 1)
    api.work(second)
    results = api.http.get(
        f"/v1/messages/batches/{second}/results", headers=headers | {"accept": "application/x-ndjson"}
    )
    assert [json.loads(row)["custom_id"] for row in results.text.splitlines()] == ["b", "c", "a"]
    assert post("a", reuse="auto")["id"] != second
    assert "there is no batch 'batch_0'" in str(post("a", reuse="batch_0", code=404))
    assert "reuse: send it in the URL: ?reuse=BATCH or ?reuse=auto" in str(post("a", more={"reuse": first}, code=400))
