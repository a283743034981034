"""What becomes of the files in `tests/cases` whose lines, ids, bytes or columns are odd, in every entry point."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.service.openai_kit import KEYS, client, connect, until
from tests.service.test_cases import CASES, HEADERS, dropped, uploaded
from tests.service.test_run_commands import batchfile

__all__ = ["client", "connect"]

# By name: the id of each request, and what is said about it if it cannot run.
LINES: dict[str, list[tuple[str | None, str]]] = {
    "bytes-bom.jsonl": [("ok-1", ""), ("ok-2", "")],
    "bytes-crlf.jsonl": [("ok-1", ""), ("ok-2", "")],
    "bytes-no-last-newline.jsonl": [("ok-1", ""), ("ok-2", "")],
    "bytes-cp1252.jsonl": [("ok-1", ""), ("acc-1", "is not valid UTF-8: byte 0xe9 at column 145")],
    "id-duplicate.jsonl": [("dup", ""), ("other", ""), ("dup", "custom_id: 'dup' was used on line 1; make it unique")],
    "id-odd.jsonl": [
        *(
            (one, "")
            for one in ("emoji-🚀", 'a/b\\c"d', "new\nline", "../../etc", " padded ", "nul\0id", "ab", "AB", "é")
        ),
        ("é", "custom_id: 'é' was used on line 9"),
    ],
    "shape-json-array-pretty.json": [("ok-1", ""), ("ok-2", "")],
    "shape-mistral-fireworks.jsonl": [("0", ""), ("1", "")],
    "shape-two-dialects.jsonl": [("d1", ""), ("d2", "use one format in a file")],
    "shape-non-objects.jsonl": [
        *((None, f"must be an object such as {{...}}, got {got}") for got in ("null", "a list", '"hello"', "17")),
        ("ok-1", ""),
    ],
    "shape-body-is-string.jsonl": [("s", "body: must be an object, got "), ("ok-1", "")],
    "shape-header-line.jsonl": [(None, "schema_version: unknown field"), ("ok-1", ""), ("ok-2", "")],
    "shape-comment-lines.jsonl": [
        (None, "unexpected '#' at column 1"),
        (None, "unexpected '/' at column 1"),
        ("ok-1", ""),
        ("ok-2", ""),
    ],
    "parquet-plain.parquet": [("a", ""), ("b", "")],
    "parquet-int-ids.parquet": [("1", ""), ("2", "")],
    "parquet-pandas-floats.parquet": [("a", ""), ("b", "")],
    "parquet-messages-json.parquet": [("a", ""), ("b", 'params.messages: must be a list, got "not json"')],
}
# By name: what is said about the whole file.
REFUSED = {
    "bytes-utf16le-bom.jsonl": "is UTF-16 text; save it as UTF-8",
    "shape-extra-keys.jsonl": "fields of your own next to custom_id: lead, priority, row; move them into metadata",
    "shape-results-as-input.jsonl": "is a file of results, not of requests; run the file that it was made from",
    "shape-only-blank.jsonl": "contains no requests",
    "parquet-response_format.parquet": "response_format is not supported in Parquet; drop it",
}
# The same of data that are no case: kinds of files that users give by mistake.
MISTAKEN = {
    "photo.jsonl": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is a PNG image; save its requests or rows as text"),
    "paper.CSV": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "is a PDF; save its requests or rows as text"),
    "sheet.csv": (b"PK\x03\x04rest", "is a zip archive (or an .xlsx)"),
    "twice.jsonl.gz": (gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0), "is compressed twice"),
    "cut.NDJSON.GZ": (gzip.compress(b'{"custom_id": "a", "params": {}}\n', mtime=0)[:-9], "the gzip data is truncated"),
    "leads.csv": (
        b"\xef\xbb\xbfreview;stars\r\ngood;5\r\n",
        "is CSV, separated by ';', with the columns review, stars, not requests; write a prompt over its columns",
    ),
    "one.json": (
        b'{\n"custom_id": "a"\n}',
        "is a JSON object that spans several lines; write each request on one line",
    ),
}
REFUSED |= {name: told for name, (_, told) in MISTAKEN.items()}
# Rows, which commands and the inbox read: what is said about them where only requests are read.
ROWS = {
    "shape-csv.csv": "is CSV with the columns custom_id, prompt, which `batchfile run FILE -o answers",
    "shape-prompt-lines.jsonl": "is JSONL of rows with the column prompt, which `batchfile run FILE -o answers",
}
STRICT = ("/v1/messages/batches", "/v1/messages/batches?stage=email", "/api/batches")


@pytest.fixture(scope="module")
def served(serve_api: Any) -> Any:
    """With the pools and the stages of the settings."""
    return serve_api(BATCHFILE_API_KEYS=KEYS)


def data_of(name: str) -> bytes:
    if name in MISTAKEN:
        return MISTAKEN[name][0]
    data = (CASES / name).read_bytes()
    return data if name.endswith(".parquet") else data.replace(b'"m"', b'"mistral"')


def found(results: bytes) -> list[tuple[str | None, str]]:
    """The id and the error of each result."""
    lines = [json.loads(line) for line in results.split(b"\n")[:-1]]
    errors = [line["error"] or (line.get("response") or {}).get("body", {}).get("error") or {} for line in lines]
    return [(line["custom_id"], error.get("message", "")) for line, error in zip(lines, errors, strict=True)]


def check(results: bytes, name: str) -> None:
    got, wanted = found(results), LINES[name]
    assert [custom_id for custom_id, _ in got] == [custom_id for custom_id, _ in wanted]
    for (_, said), (_, told) in zip(got, wanted, strict=True):
        assert bool(said) == bool(told), said
        assert all(part in said for part in told.split("{...}")), said


def run_of(folder: Path, name: str, *command: str) -> tuple[int, str]:
    (folder / name).write_bytes(data_of(name))
    done = batchfile(folder, command[0], name, *command[1:])
    return done.returncode, (done.stdout + done.stderr).decode()


@pytest.mark.parametrize("name", LINES)
def test_requests_run_and_bad_ones_fail_alone(tmp_path: Path, name: str) -> None:
    has_bad = any(told for _, told in LINES[name])
    code, said = run_of(tmp_path, name, "run", "-o", "o.jsonl", "--engine", "echo")
    assert code == (3 if has_bad else 0), said
    check((tmp_path / "o.jsonl").read_bytes(), name)
    assert run_of(tmp_path, name, "validate")[0] == (4 if has_bad else 0)
    assert run_of(tmp_path, name, "submit", "--store", "store", "--stage", "email")[0] == 0
    check(dropped(f"email/{name}", data_of(name)).out(f"email/{name}.results.jsonl") or b"", name)


@pytest.mark.parametrize("name", [name for name in LINES if not name.endswith(".parquet")])
def test_the_same_lines_are_read_over_http(served: Any, client: Any, name: str) -> None:
    wanted, data = LINES[name], data_of(name).replace(b'"body": {"max', b'"body": {"model": "mistral", "max')
    bad = [number for number, (_, told) in enumerate(wanted, 1) if told]
    batch = until(client, uploaded(client, data, name).id, "failed" if bad else "in_progress")
    assert [error.line for error in batch.errors.data] == bad if bad else batch.request_counts.total == len(wanted)
    for path in ("/api/batches?strict=false", *STRICT):
        made = served.http.post(path, content=data, headers=HEADERS)
        if name.endswith(".json"):
            assert (made.status_code, "is a JSON array of requests; write each on its own" in made.text) == (400, True)
        elif path in STRICT:  # where lines of OpenAI's format are not read
            assert (made.status_code, "line 1: " in made.text) == (400, True), made.text
        else:
            assert (made.json()["total"], made.json()["errored"]) == (len(wanted), len(bad)), made.text


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_without_requests_that_can_run_is_refused_once(tmp_path: Path, name: str) -> None:
    for command in (
        ("submit", "--store", "store", "--stage", "email"),
        ("run", "-o", "o.jsonl", "--engine", "echo"),
        ("estimate",),
        ("validate",),
    ):
        code, said = run_of(tmp_path, name, *command)
        assert (code, REFUSED[name] in said) == (4, True), said
    assert [*tmp_path.rglob("batch.json"), *tmp_path.glob("o.*")] == []
    rejected = dropped(f"email/{name}", data_of(name)).document(f"email/{name}.rejected.json")
    assert len(rejected["errors"]) == 1
    assert REFUSED[name] in rejected["message"]


@pytest.mark.parametrize("name", [name for name in (*REFUSED, *ROWS) if not name.endswith(".parquet")])
def test_a_body_or_a_file_without_requests_that_can_run_is_refused_once_over_http(
    served: Any, client: Any, name: str
) -> None:
    told = REFUSED.get(name) or ROWS[name]
    (error,) = until(client, uploaded(client, data_of(name), name).id, "failed").errors.data
    assert told in error.message
    for path in ("/api/batches?strict=false", *STRICT):
        refused = served.http.post(path, content=data_of(name), headers=HEADERS)
        assert (refused.status_code, told in refused.text) == (400, True), refused.text
        assert ("send one request on each line, such as" in refused.text) == (name in ROWS or "write a prompt" in told)


@pytest.mark.parametrize("name", ROWS)
def test_rows_with_prompts_run_as_they_are(tmp_path: Path, name: str) -> None:
    code, said = run_of(tmp_path, name, "run", "-o", "o.jsonl", "--engine", "echo")
    assert code == 0, said
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_bytes().splitlines()]
    assert [(row["answer"], row["error"]) for row in rows] == [(row["prompt"], None) for row in rows]
    for command in (("submit", "--store", "store", "--stage", "email"), ("estimate",), ("validate",)):
        code, said = run_of(tmp_path, name, *command)
        assert code == 0, said
    results = dropped(f"email/{name}", data_of(name)).out(f"email/{name}.results.jsonl") or b""
    assert [json.loads(line)["message"]["content"][0]["text"] for line in results.splitlines()] == [
        row["prompt"] for row in rows
    ]


def test_other_columns_of_parquet_come_back_with_the_answers(tmp_path: Path) -> None:
    name = "parquet-extra-columns.parquet"
    assert run_of(tmp_path, name, "run", "-o", "o.jsonl", "--engine", "echo")[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_bytes().splitlines()]
    assert [(row["lead_email"], row["answer"]) for row in rows] == [("x@example.com", "Hi"), ("", "Yo")]


def test_a_table_without_prompts_is_refused_with_the_command_that_runs_it(tmp_path: Path) -> None:
    name = "parquet-text-column.parquet"
    for command in (("run", "-o", "o.jsonl"), ("validate",), ("submit", "--store", "store")):
        code, said = run_of(tmp_path, name, *command)
        assert (code, f"`batchfile run {name} --prompt '... {{{{ text }}}} ...' -o" in said) == (4, True), said
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", ["parquet-plain.parquet", "parquet-text-column.parquet"])
def test_parquet_as_an_uploaded_file_fails_with_one_error(client: Any, name: str) -> None:
    (error,) = until(client, uploaded(client, data_of(name), name).id, "failed").errors.data
    assert error.message == "the file: is Parquet data, which has no url and body; write its requests as JSONL"
