"""Files from bug reports, in every entry point: `run`, `validate`, creates over HTTP, `/v1/files` and the inbox."""

import gzip
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from batchfile.testing import ManualClock, MemoryStore
from tests.contract.inbox_kit import World
from tests.helpers.lines import zstd
from tests.service.openai_kit import CHAT, KEY, client, connect, served, until, work
from tests.service.test_run_commands import batchfile

__all__ = ["client", "connect", "served"]

CASES = Path(__file__).parents[1] / "cases"
HEADERS = {
    "authorization": f"Bearer {KEY}",
    "content-type": "application/x-ndjson",
    "anthropic-version": "2023-06-01",
}
LONG = "line 1: the line is longer than 16 MiB; shorten the request"
TWICE = "is given twice; keep one of them"
INSIDE = (
    b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"mistral","messages":[{"role":"user",'
    b'"content":"A"}],"messages":[{"role":"user","content":"B"}]}}\n'
)


def command(folder: Path, data: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    (folder / "in.jsonl").write_bytes(data)
    return batchfile(folder, arguments[0], "in.jsonl", *arguments[1:])


def ran(folder: Path, data: bytes) -> list[dict[str, Any]]:
    done = command(folder, data, "run", "-o", "out.jsonl", "--engine", "echo", "--restart")
    assert done.returncode in {0, 3}, done.stderr
    return [json.loads(line) for line in (folder / "out.jsonl").read_bytes().split(b"\n")[:-1]]


def uploaded(client: Any, data: bytes, name: str = "in.jsonl") -> Any:
    file = client.files.create(file=(name, data), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")


def posted(served: Any, *lines: Any) -> Any:
    data = b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines)
    return served.http.post("/v1/messages/batches", content=data, headers=HEADERS)


def dropped(path: str, data: bytes) -> World:
    """A file in the inbox, planned and run to its end."""
    clock = ManualClock()
    world = World(MemoryStore(clock), clock)
    world.drop(path, data)
    for _ in range(4):
        world.janitor.tick()
        clock.sleep(30.0)
    for batch in world.batches():
        world.run(batch)
    world.janitor.tick()
    return world


def test_keys_given_twice_are_rejected_in_every_entry_point(tmp_path: Path, served: Any, client: Any) -> None:
    data = (CASES / "json-duplicate-keys.jsonl").read_bytes()
    messages = [line["response"]["body"]["error"]["message"] for line in ran(tmp_path, data + INSIDE)]
    places = ["custom_id", "body", "body.messages"]
    assert [f"{place}: {TWICE}" in message for place, message in zip(places, messages, strict=True)] == [True] * 3
    checked = command(tmp_path, data + INSIDE, "validate")
    assert (checked.returncode, checked.stdout.decode().count(TWICE)) == (4, 4)

    native = b'{"custom_id":"a","params":{},"params":{"messages":[]}}\n'
    assert posted(served, native).status_code == 400
    assert f"params: {TWICE}" in posted(served, native).text
    failed = until(client, uploaded(client, data).id, "failed")
    assert [(error.line, TWICE in error.message) for error in failed.errors.data] == [(1, True), (2, True)]
    batch = work(served, client, uploaded(client, INSIDE).id)
    assert "body.messages: " + TWICE in client.files.content(batch.error_file_id).text
    results = (dropped("email/in.jsonl", data + INSIDE).out("email/in.jsonl.results.jsonl") or b"").decode()
    assert [TWICE in line for line in results.splitlines()] == [True] * 3


def test_advice_about_a_key_never_changes_the_meaning_in_any_entry_point(
    tmp_path: Path, served: Any, client: Any
) -> None:
    data = b"".join(
        (CASES / name).read_bytes().replace(b'"m"', b'"mistral"')
        for name in ("key-typical_p.jsonl", "key-rf-schema-flat.jsonl")
    )
    said = (
        "body.typical_p: typical_p is not supported; remove it",
        "body.response_format.name: belongs inside response_format.json_schema",
    )
    texts = {"run": json.dumps(ran(tmp_path, data)), "validate": command(tmp_path, data, "validate").stdout.decode()}
    batch = work(served, client, uploaded(client, data).id)
    texts["files"] = client.files.content(batch.error_file_id).text
    params = {"model": "mistral", "messages": [{"role": "user", "content": "x"}], "max_tokens": 8, "typical_p": 4}
    made = posted(served, {"custom_id": "a", "params": params})
    assert made.status_code == 200, made.text
    served.work(made.json()["id"], "mistral")
    http = served.http.get(f"/api/batches/{made.json()['id']}/results", headers=HEADERS).text
    assert "params.typical_p: typical_p is not supported; remove it" in http
    texts["inbox"] = (dropped("email/in.jsonl", data).out("email/in.jsonl.results.jsonl") or b"").decode()
    for entry, text in texts.items():
        assert [words in text for words in said] == [True, True], (entry, text)
        assert "Rename it" not in text
        assert "did you mean" not in text


def test_line_separators_break_no_reader_of_results_in_any_entry_point(
    tmp_path: Path, served: Any, client: Any
) -> None:
    bad = '{"custom_id":"b\u2028","method":"POST","url":"%s","body":{"model":"mistral","\u0085":1}}\n'.replace(
        "%s", CHAT
    )
    data = (CASES / "bytes-u2028-nel-raw.jsonl").read_bytes().replace(b'"m"', b'"mistral"') + bad.encode()
    ids = [json.loads(line)["custom_id"] for line in data.split(b"\n")[:-1]]
    assert [line["custom_id"] for line in ran(tmp_path, data)] == ids
    texts = [(tmp_path / "out.jsonl").read_text()]
    assert (tmp_path / "out.jsonl.errors.jsonl").read_bytes() == bad.encode()

    batch = work(served, client, uploaded(client, data).id)
    for file_id, num in ((batch.output_file_id, 2), (batch.error_file_id, 1)):
        lines = list(client.files.content(file_id).iter_lines())
        assert len([json.loads(line) for line in lines]) == num
    params = {"model": "mistral", "messages": [{"role": "user", "content": "a\u2028b\u2029c\u0085d"}], "max_tokens": 8}
    batch_id = posted(served, {"custom_id": "a", "params": params}).json()["id"]
    served.work(batch_id, "mistral")
    for shape in ({"batchfile-dialect": "stage", "accept": "application/x-ndjson"}, {"batchfile-dialect": "anthropic"}):
        got = served.http.get(f"/v1/messages/batches/{batch_id}/results", headers=HEADERS | shape)
        texts.append(got.text)
    texts.append(served.http.get(f"/api/batches/{batch_id}/results", headers=HEADERS).text)
    texts.append((dropped("email/in.jsonl", data).out("email/in.jsonl.results.jsonl") or b"").decode())
    for text in texts:
        assert len(text.splitlines()) == text.count("\n") > 0
        assert "\\u2028" in text


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("json-float-integers.jsonl", ["f1", "f2"]),
        ("id-integers.jsonl", None),
        ("bytes-bom-in-the-middle.jsonl", ["ok-1", "ok-2"]),
        ("bytes-nul-tail.jsonl", None),
        ("bytes-gz-named-plain.jsonl", None),
    ],
)
def test_a_file_is_read_the_same_in_every_entry_point(
    tmp_path: Path, served: Any, client: Any, name: str, ids: list[str] | None
) -> None:
    data = (CASES / name).read_bytes()
    plain = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    rows = [row for row in plain.replace(b'"m"', b'"mistral"').split(b"\n") if b'"body"' in row]
    tail = b"\0" * 64 if plain.endswith(b"\0") else b""
    plain = b"\n".join([*rows, tail])
    data = gzip.compress(plain) if plain is not data and data.startswith(b"\x1f\x8b") else plain
    ids = ids or [str(json.loads(row)["custom_id"]) for row in rows]
    results = ran(tmp_path, data)
    assert [result["custom_id"] for result in results] == ids
    assert [result["response"]["status_code"] for result in results] == [200] * len(ids)
    checked = command(tmp_path, data, "validate").stdout.decode()
    assert ("ends in NUL bytes" in checked) == bool(tail)
    assert ("no problems" in checked) == (not tail)

    batch = work(served, client, uploaded(client, data).id)
    assert batch.request_counts.completed == len(ids)
    found = [json.loads(line) for line in client.files.content(batch.output_file_id).iter_lines()]
    assert [result["custom_id"] for result in found] == ids
    results = dropped("email/a.jsonl", data).out("email/a.jsonl.results.jsonl") or b""
    found = [json.loads(row) for row in results.splitlines()]
    assert [(result["custom_id"], result["response"]["status_code"]) for result in found] == [(one, 200) for one in ids]


def test_lines_over_http_are_read_by_the_same_rules(served: Any) -> None:
    line = (
        b'{"custom_id":%s,"params":{"model":"mistral","messages":[{"role":"user","content":"x"}],"max_tokens":8.0}}\n'
    )
    made = posted(served, line % b'"a"', b"\xef\xbb\xbf" + line % b"17", b"\0" * 40)
    assert made.status_code == 200, made.text
    served.work(made.json()["id"], "mistral")
    results = served.http.get(f"/api/batches/{made.json()['id']}/results", headers=HEADERS).text.splitlines()
    found = [json.loads(result) for result in results]
    assert [(result["custom_id"], result["status"]) for result in found] == [("a", "succeeded"), ("17", "succeeded")]


def test_a_run_says_that_a_file_ends_in_nul_bytes(tmp_path: Path) -> None:
    done = command(tmp_path, (CASES / "bytes-nul-tail.jsonl").read_bytes(), "run", "-o", "o.jsonl", "--engine", "echo")
    assert (done.returncode, b"ends in NUL bytes" in done.stderr) == (0, True)


def test_whole_numbers_are_ids_in_parquet_too(tmp_path: Path) -> None:
    done = batchfile(tmp_path, "run", str(CASES / "parquet-int-ids.parquet"), "-o", "o.jsonl", "--engine", "echo")
    assert done.returncode == 0, done.stderr
    ids = [json.loads(row)["custom_id"] for row in (tmp_path / "o.jsonl").read_bytes().splitlines()]
    assert all(one.isdigit() for one in ids)
    assert ids


def test_a_file_that_is_not_lines_fails_with_one_sentence(client: Any) -> None:
    failed = until(client, uploaded(client, (CASES / "bytes-utf16le-bom.jsonl").read_bytes()).id, "failed")
    (error,) = failed.errors.data
    assert (error.code, error.message) == ("invalid_file", "the file: is UTF-16 text; save it as UTF-8")


@pytest.mark.parametrize(
    ("path", "media"),
    [
        ("/v1/messages/batches", "application/json"),
        ("/v1/messages/batches", "application/x-ndjson"),
        ("/api/batches?strict=false", "application/x-ndjson"),
    ],
)
@pytest.mark.parametrize("pack", [gzip.compress, zstd.compress])
def test_a_packed_body_is_read_without_a_header_that_says_so(served: Any, path: str, media: str, pack: Any) -> None:
    params = {"model": "mistral", "messages": [{"role": "user", "content": "x"}], "max_tokens": 8}
    request = {"custom_id": "a", "params": params}
    document = {"requests": [request]} if media == "application/json" else request
    data = pack(json.dumps(document).encode())
    made = served.http.post(path, content=data, headers=HEADERS | {"content-type": media})
    assert made.status_code == 200, made.text
    served.work(made.json()["id"], "mistral")
    results = served.http.get(f"/api/batches/{made.json()['id']}/results", headers=HEADERS).text.splitlines()
    assert [json.loads(one)["status"] for one in results] == ["succeeded"]


@pytest.mark.parametrize("path", ["/v1/messages/batches", "/api/batches", "/api/batches?strict=false"])
@pytest.mark.parametrize("media", ["application/x-ndjson", "application/json"])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        ((CASES / "bytes-utf16le-bom.jsonl").read_bytes(), "is UTF-16 text; save it as UTF-8"),
        ('{"custom_id": "a"}'.encode("utf-16-be"), "is UTF-16 text; save it as UTF-8"),
        (gzip.compress('{"custom_id": "a"}'.encode("utf-16"), mtime=0), "is UTF-16 text; save it as UTF-8"),
        ((CASES / "parquet-int-ids.parquet").read_bytes(), "is Parquet data"),
        (b"PK\x03\x04 and so on", "is a zip archive"),
    ],
    ids=["UTF-16", "without a mark", "packed UTF-16", "Parquet", "zip"],
)
def test_a_body_that_is_not_text_is_refused_in_one_sentence(
    served: Any, path: str, media: str, data: bytes, words: str
) -> None:
    refused = served.http.post(path, content=data, headers=HEADERS | {"content-type": media})
    assert refused.status_code == 400
    assert f"the body: {words}" in refused.text


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("in.parquet", (CASES / "parquet-empty.parquet").read_bytes()),
        ("in.jsonl", b"\n \n"),
        ("in.jsonl", b"\xef\xbb\xbf"),
        ("in.jsonl", b"\0" * 40),
        ("in.jsonl.gz", gzip.compress(b"", mtime=0)),
        ("in.jsonl.zst", zstd.compress(b"\n")),
    ],
    ids=["no rows", "blank", "a mark", "NUL bytes", "packed nothing", "packed blank"],
)
def test_a_file_without_a_request_says_so_in_every_entry_point(
    tmp_path: Path, served: Any, client: Any, name: str, data: bytes
) -> None:
    said = "contains no requests"
    (tmp_path / name).write_bytes(data)
    for arguments in (("run", name, "-o", "o", "--engine", "echo"), ("validate", name)):
        done = batchfile(tmp_path, *arguments)
        assert (done.returncode, said in (done.stdout + done.stderr).decode()) == (4, True), done
    assert said in json.dumps(dropped(f"email/{name}", data).document(f"email/{name}.rejected.json"))
    if name.endswith(".parquet"):
        return  # which the service reads from its inbox
    (error,) = until(client, uploaded(client, data, name).id, "failed").errors.data
    assert said in error.message
    refused = posted(served, data)
    assert (refused.status_code, said in refused.text) == (400, True), refused.text


@pytest.mark.parametrize("custom_id", ['"long"', "17"])
def test_a_line_over_the_limit_keeps_its_id_in_every_entry_point(tmp_path: Path, served: Any, custom_id: str) -> None:
    wanted = custom_id.strip('"')
    long = b'{"custom_id": %s, "params": {"messages": [{"role": "user", "content": "%s"}]}}\n' % (
        custom_id.encode(),
        b"x" * 17 * 2**20,
    )
    (result,) = ran(tmp_path, long)
    assert (result["custom_id"], result["error"]["message"]) == (wanted, LONG)
    checked = command(tmp_path, long, "validate", "--json").stdout.decode()
    assert json.loads(checked.splitlines()[0])["custom_id"] == wanted
    good = b'{"custom_id":"ok","params":{"messages":[{"role":"user","content":"x"}],"max_tokens":8}}\n'
    results = dropped("email/in.jsonl", long + good).out("email/in.jsonl.results.jsonl") or b""
    assert [json.loads(one)["custom_id"] for one in results.splitlines()] == [wanted, "ok"]
    made = served.http.post("/api/batches?strict=false", content=long, headers=HEADERS)
    assert made.status_code == 200, made.text
    served.work(made.json()["id"], "mistral")
    results = served.http.get(f"/api/batches/{made.json()['id']}/results", headers=HEADERS).text
    assert [json.loads(one)["custom_id"] for one in results.splitlines()] == [wanted]
