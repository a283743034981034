"""What a file is told to be, from its name and its first bytes."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.lines import KIND_BYTES, FileKind, command_for, refusal
from tests.helpers.lines import kinds_detect as detect

CASES = Path(__file__).parents[1] / "cases"
PARAMS = '{"custom_id": "a", "params": {"messages": [{"role": "user", "content": "Hi"}]}}'
OPENAI = '{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": []}}'
NESTED = '{"custom_id": "a", "data": {"params": {}}}'


@pytest.mark.parametrize(
    ("name", "text", "layout", "content"),
    [
        ("a.jsonl", PARAMS, "jsonl", "requests"),
        ("a.NDJSON.GZ", OPENAI, "jsonl", "requests"),
        ("a.jsonl", "\ufeff\n" + PARAMS, "jsonl", "requests"),
        ("stdin", OPENAI, "jsonl", "requests"),
        ("a.csv", PARAMS, "jsonl", "requests"),
        ("prompts.txt", PARAMS, "jsonl", "requests"),
        ("a.jsonl", '{"custom_id": "0", "body": {"messages": []}}', "jsonl", "requests"),
        ("a.jsonl", '{"custom_id": "s", "method": "POST", "url": "/v1", "body": "text"}', "jsonl", "requests"),
        ("a.jsonl", '{"custom_id": "a", "parms": {}}', "jsonl", "requests"),
        ("a.jsonl", '{"custom_id": "a", "params": {"messages": [', "jsonl", "requests"),
        ("a.jsonl", '{"custom_id": 1, "params": 7}', "jsonl", "requests"),
        ("a.jsonl", f'# my leads\n{{"version": 1}}\n{PARAMS}', "jsonl", "requests"),
        ("a.jsonl", f"null\n[1, 2]\n{PARAMS}", "jsonl", "requests"),
        ("a.jsonl", "\n\n \n", "jsonl", "requests"),
        ("a.json", json.dumps([json.loads(PARAMS)], indent=2), "array", "requests"),
        ("a.json", f"[{PARAMS}]", "array", "requests"),
        ("a.json", json.dumps({"requests": [json.loads(PARAMS)]}, indent=1), "document", "requests"),
        ("a.json", f'{{"stage": "email", "requests": [{PARAMS}]}}', "document", "requests"),
        ("a.json", json.dumps(json.loads(PARAMS), indent=1), "object", "unknown"),
        ("stdin", "{rubbish\n{more", "jsonl", "unknown"),
        ("a.json", '["one", "two"]', "array", "unknown"),
        ("a.json", '{"requests": ["one"]}', "document", "unknown"),
        ("a.json", '[{"review": "good", "about": {"params": {}}}]', "array", "rows"),
        ("a.jsonl", '{"review": "good"}\n{"stars": 1}', "jsonl", "rows"),
        ("a.jsonl", NESTED, "jsonl", "rows"),
        ("mails.jsonl", '{"subject": "s", "body": "b", "url": "u"}', "jsonl", "rows"),
        ("a.jsonl", '{"custom_id": "a", "messages": []}', "jsonl", "rows"),
        ("a.jsonl", "one\ntwo", "jsonl", "unknown"),
        ("a.jsonl", '{"custom_id": "a", "response": null, "error": {}}', "jsonl", "results"),
        ("a.jsonl", '{"custom_id": "a", "status": "succeeded", "message": {}, "usage": {}}', "jsonl", "results"),
        ("a.jsonl", '{"custom_id": "a", "result": {"type": "succeeded"}}', "jsonl", "results"),
        ("a.csv", "review\nGood", "csv", "rows"),
        ("a.csv", '"a ""b""\nc",d\n1,2', "csv", "rows"),
        ("stdin", "review,stars\nGood,1\n", "csv", "rows"),
        ("stdin", "Say hi, please\nSay ho, please", "text", "rows"),
        ("stdin", "red,green", "text", "rows"),
        ("stdin", "red,green\nWhat is it?\nAnd this?", "text", "rows"),
        ("notes.txt", "a,b\n1,2", "text", "rows"),
        ("stdin", "What is 2 + 2?", "text", "rows"),
        ("x.bin", "PAR1....", "parquet", "rows"),
    ],
)
def test_the_kind_of(name: str, text: str, layout: str, content: str) -> None:
    kind = detect(name, text.encode())
    assert (kind.layout, kind.content) == (layout, content)


@pytest.mark.parametrize("delimiter", list(",;\t|"))
def test_the_delimiter_is_the_one_that_gives_every_record_as_many_fields(delimiter: str) -> None:
    rows = [["name", "a text"], ["x, y", 'says "a; b"'], ["", "1\n2"], ["ragged"]]
    text = "\n".join(delimiter.join('"' + one.replace('"', '""') + '"' for one in row) for row in rows)
    assert detect("a.csv", text.encode()) == FileKind(
        layout="csv", content="rows", columns=("name", "a text"), delimiter=delimiter
    )


@pytest.mark.parametrize(
    ("name", "text", "column"),
    [
        (
            "a.csv",
            "sku,url,title,comment\nA-1,https://example.com/a/long/address,Box,It broke after a day\n",
            "comment",
        ),
        ("a.csv", "id,customer_id,word\nxxxxxxxxxxxx,yyyyyyyyyyy,ok\n", "word"),
        ("a.csv", "id\nx\n", "id"),
        ("a.csv", "id,text\n", "text"),
        ("a.jsonl", '{"id": 1, "tag": "x"}\n{"id": 2, "tag": "y", "about": "a few words"}\n', "about"),
        ("a.json", '[{"id": 1, "text": "only keys are looked at"}]', "text"),
    ],
)
def test_the_example_of_a_prompt_has_the_column_with_the_most_text(name: str, text: str, column: str) -> None:
    assert f"'... {{{{ {column} }}}} ...'" in command_for(detect(name, text.encode()), name)


def test_a_byte_order_mark_of_csv_is_noted() -> None:
    assert detect("a.csv", b"\xef\xbb\xbfa,b\n1,2\n").has_bom
    assert not detect("a.csv", b"a,b\n1,2\n").has_bom
    assert not detect("a.jsonl", b'\xef\xbb\xbf{"a": 1}\n').has_bom


def test_a_first_line_longer_than_what_is_looked_at_is_a_request() -> None:
    long = PARAMS.replace("Hi", "x" * KIND_BYTES)
    assert detect("a.jsonl", long.encode()[:KIND_BYTES]).content == "requests"
    assert detect("a.json", f"[{long}]".encode()[:KIND_BYTES]).content == "requests"
    metadata = '{"metadata": {"a": "%s"}, "custom_id": "a", "params": {}}' % ("x" * KIND_BYTES)
    assert detect("a.jsonl", metadata.encode()[:KIND_BYTES]).content == "requests"
    assert detect("a.jsonl", b'{"metadata": {"a": 1}, "custom_id": "a"}').content == "rows"


def test_columns_are_those_of_the_first_rows() -> None:
    assert detect("a.jsonl", b'{"a": 1}\n{"b": {"c": 1}, "a": 2}').columns == ("a", "b")
    assert detect("a.csv", '\ufeffÜber,"b c"\n1,2'.encode()).columns == ("Über", "b c")


@pytest.mark.parametrize(
    ("name", "text", "command"),
    [
        ("my reviews.csv", "id,review\n1,ok", "'my reviews.csv' --prompt '... {{ review }} ...' -o answers.csv"),
        ("a.csv.gz", "Full Text,n\nx,1", """a.csv.gz --prompt '... {{ row["Full Text"] }} ...' -o answers.csv"""),
        ("prompts.txt", "Say hi", "prompts.txt -o answers.jsonl"),
        ("a.jsonl", '{"prompt": "Say hi"}', "a.jsonl -o answers.jsonl"),
        ("a.parquet", "PAR1", "a.parquet --prompt '... {{ COLUMN }} ...' -o answers.parquet"),
    ],
)
def test_the_command_that_runs_it(name: str, text: str, command: str) -> None:
    kind = detect(name, text.encode())
    assert command_for(kind, name) == f"batchfile run {command}"
    assert command in refusal(kind, name)


def test_a_refusal_says_what_the_file_is() -> None:
    def told(name: str, text: str) -> str:
        return refusal(detect(name, text.encode()), name)

    assert told("a.csv", "review;n\nok;1").startswith(
        "a.csv: is CSV, separated by ';', with the columns review, n, not"
    )
    assert "is a file of results, not of requests" in told("a.jsonl", '{"custom_id": "a", "result": {}}')
    assert "jq -c ." in told("a.json", '{\n"custom_id": "a"\n}')
    assert ".txt" in told("a.json", '["a"]')
    assert refusal(detect("the file", b"One\nTwo"), "FILE", "the file").startswith("the file: is plain text")


OWN = '{"custom_id": "a", "params": {}, "lead": {"id": 7}, "a b": 1}'


@pytest.mark.parametrize(
    ("name", "text", "program"),
    [
        ("a.jsonl", OWN + "\n" + OWN, '.metadata += {lead, "a b"} | del(.lead, ."a b")'),
        ("a.jsonl", '# leads\n{"custom_id": "a", "body": {}, "row": 1}', ".body.metadata += {row} | del(.row)"),
        ("a.json", f"[{OWN}]", '.[] | .metadata += {lead, "a b"} | del(.lead, ."a b")'),
        ("a.json", f'{{"requests": [{OWN}]}}', '.requests[] | .metadata += {lead, "a b"} | del(.lead, ."a b")'),
        (
            "a.txt",
            '{"custom_id": "a", "body": {}, "x": 1}\n{"custom_id": "a", "params": {}, "y": 1}',
            "(if .body then .body else . end).metadata += {x, y} | del(.x, .y)",
        ),
    ],
)
def test_requests_that_all_have_own_fields_are_refused_with_the_command_that_moves_them(
    name: str, text: str, program: str
) -> None:
    kind = detect(name, text.encode())
    assert not kind.is_ready
    told = refusal(kind, name)
    assert "each with fields of your own next to custom_id: " in told
    assert told.endswith(f"; move them into metadata: `jq -c '{program}' {name} > requests.jsonl`")
    if shutil.which("jq"):
        moved = subprocess.run(["jq", "-c", program], input=text.replace("# leads", ""), capture_output=True, text=True)
        assert detect(name, moved.stdout.encode()).is_ready, moved.stderr
        assert '"lead":' not in text or '"metadata":{"lead":{"id":7},"a b":1}' in moved.stdout


def test_the_command_unpacks_a_file_and_names_none_that_jq_cannot_read() -> None:
    kind = detect("a.jsonl.gz", OWN.encode())
    assert "`gzip -dc a.jsonl.gz | jq -c " in refusal(kind, "a.jsonl.gz")
    assert refusal(kind, "-").endswith(" FILE > requests.jsonl`")


@pytest.mark.parametrize(
    "text",
    [
        f"{OWN}\n{PARAMS}",  # the others can run
        '{"custom_id": "a", "params": {}, "model": "m"}',  # belongs into params
        '{"custom_id": "a", "params": {}, "seed": 1}',
        f'{OWN}\n{{"custom_id": "a", "params": {{}}, "seed": 1}}',
        '{"custom_id": "a", "params": {}, "seed": 1}\n{"seed": 1, "stage": "x"}',
        '{"custom_id": "a", "params": {}, "metdata": {}}',
        '{"custom_id": "a", "parms": {}, "x": 1}',
        '{"custom_id": "a", "metadata": {}, "row_problem": "no"}',
        '{"custom_id": "a", "body": {}, "metadata": {}}',
    ],
)
def test_other_fields_concern_their_lines_alone(text: str) -> None:
    assert detect("a.jsonl", text.encode()).is_ready


@pytest.mark.parametrize("line", ['{"custom_id": null, "params": {}}', '{"params": {}}', '{"params": {"a'])
def test_the_outline_of_a_request_does_not_depend_on_its_values(line: str) -> None:
    assert detect("a.csv", line.encode()).content == "requests"
    assert detect("a.csv", b'{"custom_id": "a"}').content == "rows"


@given(st.binary(max_size=300), st.sampled_from(["a.jsonl", "a.csv", "a.txt", "stdin", "a.json", "é.tsv.zst"]))
def test_any_bytes_have_a_kind(data: bytes, name: str) -> None:
    kind = detect(name, data)
    if kind.content != "requests":
        assert refusal(kind, name)


@given(st.text(alphabet='{}[]":,\\ \nabcustom_idparamsbody', max_size=200))
def test_damaged_json_has_a_kind(text: str) -> None:
    detect("a.jsonl", text.encode())
    detect("a.json", ("{" + text).encode())


def test_the_cases_have_their_kinds() -> None:
    found = {
        path.name: (kind.layout, kind.content)
        for path in sorted(CASES.glob("shape-*"))
        for kind in [detect(path.name, path.read_bytes()[:KIND_BYTES])]
    }
    assert found.pop("shape-json-array-pretty.json") == ("array", "requests")
    assert found.pop("shape-csv.csv") == ("csv", "rows")
    assert found.pop("shape-prompt-lines.jsonl") == ("jsonl", "rows")
    assert found.pop("shape-results-as-input.jsonl") == ("jsonl", "results")
    assert set(found.values()) == {("jsonl", "requests")}
    assert not detect("shape-extra-keys.jsonl", (CASES / "shape-extra-keys.jsonl").read_bytes()).is_ready
