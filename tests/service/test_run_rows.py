"""`batchfile run` on rows and text: from the file a user has to the same file with answers."""

import gzip
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batchfile
from batchfile.errors import InvalidFile, OutputTaken, SettingsError
from tests import warm

CASES = Path(__file__).parents[1] / "cases"
CSV = 'id,review,stars\nr1,"good, ""really""\nyes",5\nr2,,1\nr3,bad,2\n'
PROMPT = "Classify: {{ review }}"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("reviews.csv").write_text(CSV)
    return tmp_path


def run(source: str, output: str, **more: Any) -> batchfile.Receipt:
    return batchfile.run(source, output, engine="echo", progress=False, **more)


def command(*arguments: str, stdin: bytes = b"", **variables: str) -> subprocess.CompletedProcess[bytes]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BATCHFILE_", "AWS_"))}
    return warm.run("batchfile", arguments, cwd=Path.cwd(), env=kept | variables, stdin=stdin)


def test_rows_of_csv_come_back_with_their_answers() -> None:
    receipt = run("reviews.csv", "answers.csv", prompt=PROMPT)
    assert receipt.is_all_succeeded
    assert Path("answers.csv").read_text() == (
        "id,review,stars,answer,error\n"
        'r1,"good, ""really""\nyes",5,"Classify: good, ""really""\nyes",\n'
        "r2,,1,Classify: ,\n"
        "r3,bad,2,Classify: bad,\n"
    )


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv", "a.jsonl", "a.jsonl.zst", "a.parquet"])
def test_the_name_of_the_output_decides_its_format_and_the_rows_are_the_same(name: str) -> None:
    run("reviews.csv", name, prompt=PROMPT, into="label")
    back = run(name, "back.jsonl", prompt="{{ label }}", into="again", id_column="id")
    assert back.is_all_succeeded
    rows = [json.loads(line) for line in Path("back.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == [row["again"] for row in rows]
    assert [(row["id"], row["stars"]) for row in rows] == [("r1", "5"), ("r2", "1"), ("r3", "2")]
    assert rows[0]["review"] == 'good, "really"\nyes'


@pytest.mark.parametrize("packing", [False, True])
def test_compressed_rows_and_upper_case_endings_are_read(packing: bool) -> None:
    name = "REVIEWS.CSV.GZ" if packing else "REVIEWS.CSV"
    Path(name).write_bytes(gzip.compress(CSV.encode()) if packing else CSV.encode())
    assert run(name, "a.csv", prompt=PROMPT).counts.succeeded == 3


def test_json_rows_keep_their_values() -> None:
    rows = [{"a": 1.5, "b": [{"c": None}], "d": "é"}, {"a": None, "e": True}]
    Path("rows.json").write_text(json.dumps(rows, indent=2))
    Path("rows.ndjson").write_text("\n".join(map(json.dumps, rows)))
    for name in ("rows.json", "rows.ndjson"):
        run(name, f"{name}.out", prompt="a is {{ a }}")
        found = [json.loads(line) for line in Path(f"{name}.out").read_text().splitlines()]
        added = [{"answer": "a is 1.5", "error": None}, {"answer": "a is ", "error": None}]
        assert found == [row | more for row, more in zip(rows, added, strict=True)]


def test_parquet_with_any_columns_is_rows() -> None:
    table = pa.table({"n": [1, 2], "score": [0.5, float("nan")], "tags": [["x"], None], "text": ["a", "b"]})
    pq.write_table(table, "in.parquet")
    run("in.parquet", "out.parquet", prompt="{{ n }} {{ score }} {{ tags }} {{ text }}")
    found = pq.read_table("out.parquet")
    assert found.schema.field("n").type == pa.int64()
    assert found.to_pylist() == [
        {"n": 1, "score": 0.5, "tags": ["x"], "text": "a", "answer": '1 0.5 ["x"] a', "error": None},
        {"n": 2, "score": None, "tags": None, "text": "b", "answer": "2   b", "error": None},
    ]


def test_a_table_of_requests_with_further_columns_gives_them_back() -> None:
    table = pa.table({"custom_id": [1, 2], "prompt": ["Hi", "Yo"], "max_tokens": [3.0, None], "lead": ["x", "y"]})
    pq.write_table(table, "in.parquet")
    run("in.parquet", "out.jsonl")
    assert [json.loads(line)["lead"] for line in Path("out.jsonl").read_text().splitlines()] == ["x", "y"]
    pq.write_table(table.drop_columns("lead"), "plain.parquet")
    run("plain.parquet", "results.jsonl")
    first = json.loads(Path("results.jsonl").read_text().splitlines()[0])
    assert (first["custom_id"], first["status"]) == ("1", "succeeded"), "no other columns: result lines"


def test_bad_rows_fail_alone_with_their_line() -> None:
    Path("bad.csv").write_text("id,review\n1,ok\n2,a,b\n1,again\n3,\n4,fine\n")
    receipt = run("bad.csv", "out.jsonl", prompt="{{ review }}")
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in rows] == ["ok", None, None, None, "fine"]
    assert rows[1]["error"].startswith("line 3: has 3 fields, but the header has 2")
    assert rows[2]["error"] == "line 4: id: '1' was used on line 2; make it unique"
    assert rows[3]["error"] == "line 5: the prompt is empty"
    assert [row["id"] for row in rows] == ["1", "2", "1", "3", "4"]
    assert receipt.errors is not None
    assert receipt.errors.lines == 3


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("reviews.csv", "batchfile run reviews.csv --prompt '... {{ review }} ...' -o answers.csv"),
        ("results.jsonl", "is a file of results, not of requests"),
        ("rows.jsonl", "is JSONL of rows with the columns a, b, not requests"),
        ("strings.json", "is a JSON array, but not of objects"),
        ("object.json", "jq -c ."),
        ("lines.jsonl", "is JSON lines, but none can be read as an object"),
    ],
)
def test_a_file_without_requests_is_rejected_in_one_sentence_and_nothing_is_created(
    folder: Path, name: str, told: str
) -> None:
    Path("results.jsonl").write_bytes((CASES / "shape-results-as-input.jsonl").read_bytes())
    Path("rows.jsonl").write_text('{"a": 1}\n{"b": 2}\n')
    Path("strings.json").write_text('["one", "two"]')
    Path("object.json").write_text('{\n "custom_id": "a",\n "params": {}\n}')
    Path("lines.jsonl").write_text("one\ntwo\n")
    before = sorted(folder.iterdir())
    done = command("run", name, "-o", "out.jsonl", "--engine", "echo")
    assert done.returncode == 4
    assert told.encode() in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(folder.iterdir()) == before


def test_a_request_with_a_bad_value_is_one_rejected_line_also_alone() -> None:
    Path("one.jsonl").write_text('{"custom_id": "a", "params": {"messages": []}}')
    assert run("one.jsonl", "out.jsonl").counts.errored == 1


def test_a_json_array_and_a_document_of_requests_run() -> None:
    array = json.loads((CASES / "shape-json-array-pretty.json").read_text())
    Path("document.json").write_text(json.dumps({"requests": array}, indent=1))
    Path("array.json.gz").write_bytes(gzip.compress(json.dumps(array).encode()))
    for name in ("document.json", "array.json.gz", str(CASES / "shape-json-array-pretty.json")):
        assert run(name, "out.jsonl", restart=True).counts.succeeded == 2
    Path("staged.json").write_text(json.dumps({"stage": "email", "requests": array}))
    with pytest.raises(InvalidFile, match="stage: cannot be set in a file"):
        run("staged.json", "other.jsonl")


def test_choices_and_schemas_become_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHFILE_ECHO_GUIDED", '{"label": "good", "stars": 4}')
    Path("schema.json").write_text('{"type": "object", "properties": {"label": {"type": "string"}, "stars": {}}}')
    with pytest.raises(InvalidFile, match="has a column 'stars' already"):
        run("reviews.csv", "a.csv", prompt=PROMPT, schema="schema.json")
    Path("plain.csv").write_text("review\nok\n")
    run("plain.csv", "a.csv", prompt=PROMPT, schema="schema.json")
    assert Path("a.csv").read_text() == "review,label,stars,error\nok,good,4,\n"
    run("plain.csv", "b.csv", prompt=PROMPT, schema="schema.json", into="all")
    assert Path("b.csv").read_text() == 'review,all,error\nok,"{""label"":""good"",""stars"":4}",\n'
    monkeypatch.setenv("BATCHFILE_ECHO_GUIDED", '{"label": "good"}')
    run("plain.csv", "c.csv", prompt=PROMPT, choices="good, bad", into="label")
    assert Path("c.csv").read_text() == "review,label,error\nok,good,\n"


def test_another_prompt_is_another_run_and_further_rows_are_run() -> None:
    run("reviews.csv", "a.csv", prompt=PROMPT)
    with pytest.raises(OutputTaken, match=r"prompt was 'Classify.*' and is 'Rate.*' now\. None of them can be reused"):
        run("reviews.csv", "a.csv", prompt="Rate {{ review }}")
    with Path("reviews.csv").open("a") as file:
        file.write("r4,new,3\n")
    receipt = run("reviews.csv", "a.csv", prompt=PROMPT)
    assert (receipt.counts.succeeded, receipt.reused) == (4, 3)
    assert Path("a.csv").read_text().endswith("r4,new,3,Classify: new,\n")


def test_rows_keep_their_answers_in_another_place_and_another_column() -> None:
    Path("r.csv").write_text("review\none\ntwo\nthree\n")
    run("r.csv", "a.csv", prompt=PROMPT)
    Path("r.csv").write_text("review\nthree\nnew\none\nfour\n")
    receipt = run("r.csv", "a.csv", prompt=PROMPT, into="label", limit=3)
    assert (receipt.counts.succeeded, receipt.reused) == (3, 2)
    assert Path("a.csv").read_text() == (
        "review,label,error\nthree,Classify: three,\nnew,Classify: new,\none,Classify: one,\n"
    )


def test_a_prompt_from_a_file_is_the_same_run_and_a_long_one_is_kept_as_its_digest() -> None:
    long = "x" * 5000 + "{{ review }}"
    Path("prompt.txt").write_text(long)
    first = run("reviews.csv", "a.csv", prompt_file="prompt.txt")
    assert run("reviews.csv", "a.csv", prompt=long) == first
    with pytest.raises(OutputTaken):
        run("reviews.csv", "a.csv", prompt="y" + long)
    with pytest.raises(SettingsError, match="cannot be combined"):
        run("reviews.csv", "b.csv", prompt=long, prompt_file="prompt.txt")


def test_a_sample_is_the_same_rows_each_time() -> None:
    Path("many.csv").write_text("n\n" + "".join(f"{n}\n" for n in range(100)))
    samples = []
    for name, seed in (("a.csv", None), ("b.csv", 0), ("c.csv", 1)):
        run("many.csv", name, prompt="{{ n }}", sample=10, seed=seed)
        samples.append([int(line.split(",")[0]) for line in Path(name).read_text().splitlines()[1:]])
    assert samples[0] == samples[1] == sorted(samples[0])
    assert len(samples[2]) == 10
    assert samples[2] != samples[0]
    assert run("many.csv", "d.csv", prompt="{{ n }}", limit=3).counts.succeeded == 3
    with pytest.raises(SettingsError, match="cannot be combined"):
        run("many.csv", "e.csv", prompt="{{ n }}", limit=3, sample=3)


@pytest.mark.parametrize(("limit", "sample"), [(3, None), (None, 3)])
def test_a_part_of_the_rows_keeps_their_ids_and_lines(limit: int | None, sample: int | None) -> None:
    Path("many.csv").write_text("key,n\n" + "".join(f"k{n % 40},{n}\n" for n in range(50)))
    receipt = run("many.csv", "a.jsonl", prompt="{{ n }}", id_column="key", limit=limit, sample=sample)
    assert receipt.counts.succeeded == 3, "the other uses of an id are not looked at"
    rows = [json.loads(line) for line in Path("a.jsonl").read_text().splitlines()]
    assert all(row["answer"] == row["n"] and row["key"] == f"k{int(row['n']) % 40}" for row in rows)
    assert limit is None or [row["n"] for row in rows] == ["0", "1", "2"]


def test_a_sample_says_the_lines_of_the_file() -> None:
    Path("few.csv").write_text("key,n\n\nk,1\n\nk,2\n")
    run("few.csv", "a.jsonl", prompt="{{ n }}", id_column="key", sample=2)
    errors = [json.loads(line)["error"] for line in Path("a.jsonl").read_text().splitlines()]
    assert errors == [None, "line 5: key: 'k' was used on line 3; make it unique"]


def test_a_byte_order_mark_comes_back() -> None:
    Path("excel.csv").write_bytes(b"\xef\xbb\xbfname;text\nJos\xc3\xa9;good\n")
    run("excel.csv", "out.csv", prompt="{{ name }}")
    assert Path("out.csv").read_bytes() == b"\xef\xbb\xbfname;text;answer;error\nJos\xc3\xa9;good;Jos\xc3\xa9;\n"


def test_options_of_rows_do_not_fit_requests() -> None:
    Path("in.jsonl").write_text('{"custom_id": "a", "params": {"messages": [{"role": "user", "content": "x"}]}}')
    with pytest.raises(SettingsError, match=r"prompt is for rows and text; in\.jsonl is"):
        run("in.jsonl", "out.jsonl", prompt="x")
    with pytest.raises(SettingsError, match="raw=True is for a text"):
        run("reviews.csv", "out.jsonl", prompt=PROMPT, raw=True)
    with pytest.raises(SettingsError, match=r"use \.csv, \.tsv, \.jsonl, \.parquet or \.txt"):
        run("reviews.csv", "out.xlsx", prompt=PROMPT)


def test_a_pipe_of_text_is_answered_line_by_line() -> None:
    done = command("run", "-", "-o", "-", "--engine", "echo", "--quiet", stdin=b"Say hi, now\n\nAnd ho\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"Say hi, now\nAnd ho\n", b"")
    done = command("run", "-", "-o", "-", "--engine", "echo", stdin=b"Say hi\nAnd ho\n")
    assert b"This run cannot be resumed" in done.stderr
    done = command("run", "-", "-o", "-", "--engine", "echo", stdin=b"Say hi\n")
    assert b"results are written to stdout at the end" not in done.stderr, "of one answer"
    done = command("run", "-", "-o", "-", "--engine", "echo", "--quiet", "--raw", stdin=b"Say hi\n\nAnd ho\n")
    assert (done.returncode, done.stdout) == (0, b"Say hi\n\nAnd ho\n")


@pytest.mark.parametrize("stdin", [b"Hi\n", b"1+", gzip.compress(b"Hi\n", mtime=0)])
def test_a_prompt_of_two_letters_is_answered(stdin: bytes) -> None:
    done = command("run", "-", "-o", "-", "--engine", "echo", "--quiet", stdin=stdin)
    assert (done.returncode, done.stdout) == (0, b"1+\n" if stdin == b"1+" else b"Hi\n")


def test_a_prompt_without_columns_and_a_run_without_an_answer_are_noted() -> None:
    done = command("run", "reviews.csv", "-o", "a.csv", "--engine", "echo", "--prompt", "Good? review")
    assert b"the prompt uses no column, so every row gets the same one; insert a column as {{ NAME }}\n" in done.stderr
    done = command("run", "reviews.csv", "-o", "b.csv", "--engine", "echo", "--prompt", PROMPT, "--choices", "yes,no")
    assert done.returncode == 3
    assert b"\n  3 model_error: Output validation failed: " in done.stderr
    assert b"; for example line 2 (r1)" in done.stderr


def test_a_pipe_of_csv_gives_csv() -> None:
    given = ("run", "-", "-o", "-", "--engine", "echo", "--quiet", "--prompt", "{{ b }}")
    done = command(*given, stdin=b"a;b\n1;x\n2;y\n")
    assert (done.returncode, done.stdout) == (0, b"a;b;answer;error\n1;x;x;\n2;y;y;\n")


def test_text_gives_rows_of_json_or_text() -> None:
    Path("prompts.txt").write_text("One\nTwo\n")
    run("prompts.txt", "out.jsonl", system="Be brief.")
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert rows[0] == {"prompt": "One", "answer": "One", "error": None}
    run("prompts.txt", "out.txt", prompt="{{ prompt }}\n!")
    assert Path("out.txt").read_text() == "One\\n!\nTwo\\n!\n"


def test_validate_shows_what_rows_become() -> None:
    done = command("validate", "reviews.csv", "--prompt", PROMPT, "--system", "Be {{ stars }}.")
    assert done.returncode == 0
    assert b"reviews.csv: 3 rows, no problems; " in done.stdout
    assert b'first prompt:\n  system: Be 5.\n  user: Classify: good, "really"\n  yes\n' in done.stdout
    Path("schema.json").write_text('{"type": "object", "properties": {"stars": {"type": "integer"}}}')
    done = command("validate", "reviews.csv", "--prompt", PROMPT, "--schema", "schema.json")
    assert (done.returncode, done.stdout) == (
        4,
        b"reviews.csv: has a column 'stars' already; name another one with --into\n",
    )
    done = command("validate", "reviews.csv", "--prompt", PROMPT, "--choices", "a,b", "--into", "x", "--limit", "2")
    assert done.stdout.startswith(b"reviews.csv: 2 rows, no problems; ")
    Path("twice.csv").write_text("key,n\nk,1\nk,2\n")
    done = command("validate", "twice.csv", "--prompt", "{{ n }}", "--id-column", "key")
    told = b"twice.csv:3: key: \"k\" is already used on line 2. Make it unique: lines 2 and 3 share it. ['k']\n"
    assert done.stdout.startswith(told)
    done = command("validate", "reviews.csv")
    assert done.returncode == 4
    assert done.stdout.startswith(b"reviews.csv: is CSV with the columns id, review, stars, not requests")
