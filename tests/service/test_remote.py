"""The commands for batches elsewhere: the same over a service, over a directory and over a bucket."""

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from batchfile import open_store
from tests.chaos.servers import BUCKET, KEYS, Server
from tests.helpers.inbox import Inbox, Janitor
from tests.helpers.settings import load_settings
from tests.helpers.store import open_service_ledger
from tests.service.remote_kit import Shell, jsonl, line

GOOD = [line(f"r{number}") for number in range(200)]
BAD = line("bad", max_token=5)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = Server("ministack", tmp_path_factory.mktemp("s3"))
    try:
        server.start()
        server.wait()
        server.make_bucket()
        yield f"s3://{BUCKET}/{{}}?endpoint={server.url}&region=us-east-1"
    finally:
        server.kill()


@pytest.fixture
def shell(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    if request.param == "service":
        api = request.getfixturevalue("api")
        return Shell(tmp_path, ["--url", api.url], api.store)
    if request.param == "directory":
        return Shell(tmp_path, ["--store", "st"], str(tmp_path / "st"))
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    store = request.getfixturevalue("bucket").format("batches")
    return Shell(tmp_path, ["--store", store], store, **KEYS)


def over(*places: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("shell", places, indirect=True)


def rows(data: bytes) -> list[Any]:
    return [json.loads(row) for row in data.splitlines()]


@over("service", "directory", "bucket")
def test_a_file_is_submitted_watched_tailed_fetched_and_retried(shell: Shell) -> None:
    (shell.folder / "in.jsonl.gz").write_bytes(gzip.compress(jsonl(*GOOD, BAD)))
    submitted = shell.run("submit", "in.jsonl.gz", "--stage", "email", "--metadata", "team=blue", "--priority", "2")
    batch_id = submitted.stdout.decode().strip()
    assert b"no runner of mistral" in submitted.stderr
    tail, watch = shell.begin("tail", batch_id), shell.begin("watch", batch_id)
    shell.work(batch_id)
    tailed = shell.end(tail, code=3)
    watched = shell.end(watch, code=3)
    said = watched.stdout.decode().splitlines()
    assert said[0].startswith(f"{batch_id}: 200 of 201 requests succeeded in ")
    assert said[0].endswith("; 1 rejected")
    assert said[1].startswith("  1 invalid_request_error: ")
    assert said[1].endswith("; for example line 201 (bad)")
    assert said[2] == "      Fix the request as the message says, and run it again."

    shell.run("results", batch_id, "-o", "out.jsonl", code=3)
    results = (shell.folder / "out.jsonl").read_bytes()
    assert [row["custom_id"] for row in rows(results)] == [f"r{number}" for number in range(200)] + ["bad"]
    assert sorted(tailed.stdout.splitlines()) == sorted(results.splitlines())
    assert rows((shell.folder / "out.jsonl.errors.jsonl").read_bytes()) == [BAD]
    (why,) = rows((shell.folder / "out.jsonl.reasons.jsonl").read_bytes())
    assert (why["line"], why["custom_id"], why["type"]) == (201, "bad", "invalid_request_error")
    assert b"exists" in shell.run("results", batch_id, "-o", "out.jsonl", code=7).stderr

    repeated = shell.run("retry", batch_id)  # its old name
    assert f"it reruns 1 request of {batch_id}" in repeated.stderr.decode()
    again = repeated.stdout.decode().strip()
    listed = shell.run("ls", "-n", "2").stdout.decode().splitlines()
    assert [again in listed[1], batch_id in listed[2]] == [True, True]
    assert ["rejected" in row for row in listed] == [False, False, True]
    filters = ("--state", "open", "--stage", "email", "--pool", "mistral", "--since", "1h")
    assert [batch["batch_id"] for batch in shell.json("ls", *filters)] == [again]
    assert b"that match the filters" in shell.run("ls", "--state", "cancelled").stderr
    assert b"No live runner for pool mistral" in shell.run("status", again).stdout
    retried, first = shell.json("ls")[:2]
    assert (retried["batch_id"], first["batch_id"]) == (again, batch_id)
    assert (first["state"], first["succeeded"], first["errored"], first["rejected"]) == ("ended", 200, 1, 1)
    assert (first["stage"], first["metadata"]) == ("email", {"team": "blue"})
    assert (retried["total"], retried["state"], retried["stage"]) == (1, "open", "email")
    assert retried["metadata"] == {"team": "blue", "retry_of": batch_id}
    (status,) = shell.json("status", again)
    (waiting,) = status.pop("waiting_for")
    assert waiting["message"].startswith("No live runner for pool mistral")
    del retried["waiting_for"]
    assert status == retried


@over("service")
def test_a_batch_that_is_canceled_ends_and_its_requests_can_be_retried(shell: Shell) -> None:
    batch_id = shell.id_of("submit", "-", "--stage", "subject", stdin=jsonl(*GOOD[:5]))
    assert b"has not ended" in shell.run("rerun", batch_id, code=4).stderr
    assert b"has not ended" in shell.run("results", batch_id, code=3).stderr
    shell.run("cancel", batch_id)
    assert b"0 of 5 requests succeeded" in shell.run("watch", batch_id, code=3).stdout
    again = shell.id_of("rerun", batch_id)
    shell.work(again)
    ids = [row["custom_id"] for row in rows(shell.run("results", again).stdout)]
    assert ids == [f"r{number}" for number in range(5)]
    assert b"every request succeeded" in shell.run("rerun", again, code=4).stderr


@over("bucket")
def test_waiting_for_a_batch_writes_its_results_and_exits_as_it_went(shell: Shell) -> None:
    waiting = shell.begin("submit", "-", "--stage", "email", "-o", "out.jsonl")
    assert waiting.stdin is not None
    assert waiting.stdout is not None
    waiting.stdin.write(jsonl(*GOOD[:40]))
    waiting.stdin.close()
    waiting.stdin = None
    shell.work(waiting.stdout.readline().decode().strip())
    assert shell.end(waiting).stderr.count(b"40 of 40 requests succeeded") == 1
    assert len(rows((shell.folder / "out.jsonl").read_bytes())) == 40
    assert sorted(path.name for path in shell.folder.glob("out*")) == ["out.jsonl"]


@over("service", "directory")
@pytest.mark.parametrize("source", ["reviews.csv", "-"])
def test_rows_are_submitted_with_a_prompt_and_come_back_with_their_answers(shell: Shell, source: str) -> None:
    table = b"id,review\n1,good\n2,bad\n3,\n"
    (shell.folder / "reviews.csv").write_bytes(table)
    shell.run("submit", "reviews.csv", "--stage", "email", code=4)
    prompt = ("--prompt", "{{ review }}", "--limit", "3", "--stage", "email")
    waiting = shell.begin("submit", source, *prompt, "-o", "answers.csv")
    assert waiting.stdin is not None
    assert waiting.stdout is not None
    if source == "-":
        waiting.stdin.write(table)
    waiting.stdin.close()
    waiting.stdin = None
    batch_id = waiting.stdout.readline().decode().strip()
    (shell.folder / "reviews.csv").unlink()  # what was submitted comes back, whatever becomes of the file
    shell.work(batch_id)
    shell.end(waiting, code=3)
    assert (shell.folder / "answers.csv").read_text() == (
        "id,review,answer,error\n1,good,good,\n2,bad,bad,\n3,,,line 4: the prompt is empty\n"
    )
    assert sorted(path.name for path in shell.folder.glob("*answers*")) == ["answers.csv", "answers.csv.errors.jsonl"]
    ids = [row["custom_id"] for row in rows(shell.run("results", batch_id, code=3).stdout)]
    assert ids == ["1", "2", "3"]


@over("service", "directory")
def test_a_dropped_file_is_listed_by_its_path_and_can_be_retried(shell: Shell) -> None:
    dropped = Path(shell.store, "inbox/mistral/leads/a.jsonl")
    dropped.parent.mkdir(parents=True)
    dropped.write_bytes(jsonl(GOOD[0], BAD))
    os.utime(dropped, (1e9, 1e9))  # it has been whole for long
    settings = load_settings()
    ledger = open_service_ledger(shell.store, settings)
    Janitor(ledger, runner="test", inbox=Inbox(ledger, settings.routing())).tick()
    listed = next(row for row in shell.json("ls") if row["inbox_path"] == "inbox/mistral/leads/a.jsonl")
    batch_id = listed["batch_id"]
    (row,) = [row for row in shell.run("ls").stdout.decode().splitlines() if row.startswith(batch_id)]
    assert row.endswith("  inbox/mistral/leads/a.jsonl")
    shell.work(batch_id)
    again = shell.id_of("rerun", batch_id)
    shell.work(again)
    (result,) = rows(shell.run("results", again, code=3).stdout)
    assert (result["custom_id"], result["status"]) == ("bad", "errored")


@over("service", "directory")
def test_a_bad_line_is_an_errored_result_and_refuses_the_file_where_that_is_asked_for(shell: Shell) -> None:
    (shell.folder / "in.jsonl").write_bytes(jsonl(*GOOD[:3]) + b"{rubbish\n" + jsonl(GOOD[0]))
    refused = shell.run("submit", "in.jsonl", "--stage", "email", "--strict", code=4)
    assert b"line 4: is not valid JSON" in refused.stderr
    submitted = shell.run("submit", "in.jsonl", "--stage", "email")
    assert b"2 of 5 requests cannot run: line 4: is not valid JSON" in submitted.stderr
    batch_id = submitted.stdout.decode().strip()
    shell.work(batch_id)
    found = rows(shell.run("results", batch_id, code=3).stdout)
    assert [row["status"] for row in found] == ["succeeded"] * 3 + ["errored"] * 2
    assert "line 5: custom_id: 'r0' was used on line 1" in found[4]["error"]["message"]


@over("service", "directory")
def test_a_file_of_which_no_line_can_run_says_so_as_it_is_submitted(shell: Shell) -> None:
    bad = b'{"custom_id": "a", "params": {}, "parms": 1}\n{"custom_id": "b", "params"\n'
    submitted = shell.run("submit", "-", "--stage", "email", stdin=bad)
    (said,) = submitted.stderr.decode().splitlines()
    assert said.startswith("2 of 2 requests cannot run: line 1: parms: unknown field")


@over("service", "directory")
@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("-", b"{rubbish\n{more\n", "-: is JSON lines, but none can be read as an object; write each request"),
        ("leads.csv", b"name,city\nJo,Rome\n", "leads.csv: is CSV with the columns name, city, not requests; write"),
        ("old.jsonl", b'{"custom_id": "a", "response": {}, "error": null}\n', "is a file of results, not of requests"),
    ],
)
def test_a_file_without_requests_makes_no_batch(shell: Shell, name: str, data: bytes, told: str) -> None:
    (shell.folder / name).write_bytes(data)
    refused = shell.run("submit", name, "--stage", "email", stdin=data if name == "-" else b"", code=4)
    (said,) = refused.stderr.decode().splitlines()
    assert told in said
    assert refused.stdout == b""


@over("service")
def test_lines_in_openais_format_come_back_in_it(shell: Shell) -> None:
    body = {"model": "mistral", "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 8}
    wanted = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    batch_id = shell.id_of("submit", "-", stdin=jsonl(wanted))
    shell.work(batch_id)
    (found,) = rows(shell.run("results", batch_id).stdout)
    assert found["response"]["status_code"] == 200
    assert found["response"]["body"]["choices"][0]["message"]["role"] == "assistant"
    shell.run("results", batch_id, "-o", "out.jsonl")
    assert rows((shell.folder / "out.jsonl").read_bytes()) == [found]


@over("bucket")
def test_an_object_of_a_bucket_is_submitted_whatever_its_format(shell: Shell, tmp_path: Path) -> None:
    table = pyarrow.table({"custom_id": ["a", "b"], "prompt": ["Write.", "Write more."]})
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    bucket, query = shell.store.removesuffix("/").split("?")[0].rpartition("/")[0], shell.store.split("?")[1]
    open_store(f"{bucket}?{query}", prove=False).put("some/in.parquet", (tmp_path / "in.parquet").read_bytes())
    batch_id = shell.id_of("submit", f"{bucket}/some/in.parquet?{query}", "--stage", "email")
    shell.work(batch_id)
    shell.run("results", batch_id, "-o", "out.parquet")
    found = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["custom_id"] for row in found] == ["a", "b"]
    missing = shell.run("submit", f"{bucket}/some/other.jsonl?{query}", code=4)
    assert b"no such object" in missing.stderr
    nowhere = shell.run("submit", f"s3://nobucket/some/other.jsonl?{query}", code=4)
    assert b"some/other.jsonl: the bucket does not exist: create it or correct its name" in nowhere.stderr


@over("bucket")
def test_an_object_of_a_bucket_is_checked_and_run_here(shell: Shell) -> None:
    bucket, query = shell.store.removesuffix("/").split("?")[0].rpartition("/")[0], shell.store.split("?")[1]
    store = open_store(f"{bucket}?{query}", prove=False)
    store.put("some/run.jsonl.gz", gzip.compress(jsonl(*GOOD)))
    url = f"{bucket}/some/run.jsonl.gz?{query}"
    here = Shell(shell.folder, [], "", **KEYS)
    assert b": 200 requests" in here.run("validate", url).stdout
    for _ in range(2):
        here.run("run", url, "-o", "results/", "--engine", "echo")
        assert len(rows((shell.folder / "results" / "run.jsonl").read_bytes())) == 200


@over("service", "directory")
@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz", "-"])
def test_a_submit_says_that_its_file_ends_in_nul_bytes(shell: Shell, name: str) -> None:
    for tail, is_said in ((b"", False), (b"\0" * 40, True)):
        data = jsonl(GOOD[0]) + tail
        (shell.folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        submitted = shell.run("submit", name, "--stage", "email", stdin=data)
        assert (b"ends in NUL bytes, which are not a request" in submitted.stderr) == is_said
        assert len(submitted.stdout.splitlines()) == 1
