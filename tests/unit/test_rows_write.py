"""Rows with their answers, in each format."""

import csv
import datetime as dt
import gzip
import io
import json
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchfile.lines.file_formats import zstd
from batchfile.rows.answers import answered_rows
from batchfile.rows.prompt import AnswerColumns, RowPrompt, request_lines
from batchfile.rows.table import AnsweredTable, decode_table
from batchfile.rows.write import write_rows
from batchfile.types import Choice, Completion, Failure, Outcome, Usage
from tests.helpers.lines import FileKind, Row, encode_result, parquet_columns, parquet_lines, read_rows

ROWS: list[dict[str, Any]] = [
    {"id": 1, "text": "a\nb", "tags": ["x"], "score": None},
    {"id": 2, "text": 'é, "q"', "score": 0.5, "more": True},
]


def written(name: str, rows: list[dict[str, Any]], **more: Any) -> bytes:
    file = io.BytesIO()
    write_rows(lambda: iter(rows), file, name, **({"column": "text"} | more))
    return file.getvalue()


def answer(text: str) -> Completion:
    return Completion(choices=(Choice(text, "end_turn"),), usage=Usage())


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@given(st.lists(st.tuples(CELL, CELL), max_size=6), st.sampled_from([";", "|", ",", ""]))
def test_csv_has_the_rows_that_come_out_of_it(cells: list[tuple[str, str]], delimiter: str) -> None:
    rows = [{"a": one, "b c": other} for one, other in cells]
    data = written("o.csv", rows, delimiter=delimiter)
    kind = FileKind(layout="csv", content="rows", delimiter=delimiter or ",")
    assert [row.values for row in read_rows([data], kind, "o.csv")] == rows


def test_columns_are_in_the_order_in_which_they_appear() -> None:
    assert written("o.csv", ROWS).splitlines()[0] == b"id,text,tags,score,more"
    assert written("o.tsv", ROWS).splitlines()[0] == b"id\ttext\ttags\tscore\tmore"
    assert written("o.csv", ROWS, delimiter=";").splitlines()[0] == b"id;text;tags;score;more"
    assert [*csv.reader(io.StringIO(written("o.csv", ROWS).decode()))][1:] == [
        ["1", "a\nb", '["x"]', "", ""],
        ["2", 'é, "q"', "", "0.5", "true"],
    ]


@pytest.mark.parametrize("name", ["o.csv", "o.parquet"])
def test_the_columns_of_answers_are_last_also_if_the_first_row_cannot_be_read(name: str) -> None:
    data = written(name, [{"answer": None, "error": "bad"}, *ROWS], last=("answer", "error"))
    columns = data.splitlines()[0].decode("latin-1").split(",")
    if name == "o.parquet":
        columns = pq.read_table(io.BytesIO(data)).column_names
    assert columns == ["id", "text", "tags", "score", "more", "answer", "error"]


def test_jsonl_has_the_values_themselves() -> None:
    assert [json.loads(line) for line in written("o.jsonl", ROWS).splitlines()] == ROWS
    assert written("o", ROWS) == written("o.ndjson", ROWS) == written("o.jsonl", ROWS)
    assert b"\\u2028" in written("o.jsonl", [{"a": "\u2028"}])


def test_text_has_one_answer_on_each_line() -> None:
    rows = [{"text": "a\nb\\n"}, {"text": None}, {"text": {"k": 1}}]
    assert written("o.txt", rows) == b'a\\nb\\\\n\n\n{"k":1}\n'
    assert written("o.txt", [{"text": "a\nb\n"}], is_raw=True) == b"a\nb\n"


def test_a_compressed_name_compresses() -> None:
    plain = written("o.csv", ROWS)
    assert gzip.decompress(written("o.csv.gz", ROWS)) == plain
    assert zstd.decompress(written("o.CSV.ZST", ROWS)) == plain
    assert written("o.csv.gz", ROWS) == written("o.csv.gz", ROWS), "the same rows give the same bytes"


def test_columns_of_parquet_keep_the_types_that_they_had() -> None:
    day, at = dt.date(2026, 1, 2), dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
    kept = {
        "day": pa.array([day, None]),
        "ns": pa.array([1, None], pa.timestamp("ns")),
        "at": pa.array([at, None], pa.timestamp("us", "UTC")),
        "price": pa.array([Decimal("1.50"), None]),
        "long": pa.array([Decimal("12345678901234567890.50"), None]),
        "small": pa.array([1, None], pa.int8()),
        "float": pa.array([0.1, None], pa.float32()),
        "large": pa.array([2**64 - 1, 1], pa.uint64()),
        "kind": pa.array(["x", None]).dictionary_encode(),
        "days": pa.array([[day], None]),
    }
    as_text = {"bytes": pa.array([b"x", None]), "time": pa.array([dt.time(1), None])}
    table = pa.table(kept | as_text)
    file = io.BytesIO()
    pq.write_table(table, file)
    rows = [json.loads(line) for chunk in parquet_lines("a.parquet", file, as_rows=True) for line in chunk.splitlines()]
    _, types = json.loads(b"".join(parquet_columns("a.parquet", file)))
    data = written("o.parquet", [{**row, "answer": "x"} for row in rows], types=types)
    found = pq.read_table(io.BytesIO(data))
    assert found.select([*kept]).equals(table.select([*kept]))
    assert found.select([*as_text]).to_pylist()[0] == {"bytes": "eA==", "time": "01:00:00"}
    assert found["answer"].to_pylist() == ["x", "x"]


def test_parquet_columns_have_the_types_of_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchfile.rows.write_parquet.GROUP_ROWS", 2)
    rows = [
        {"i": 1, "f": 1, "s": "x", "l": [1], "mixed": 1, "none": None, "d": {"a": 1}, "big": 2**70},
        {"i": 2, "f": 2.5, "s": None, "l": [], "mixed": "x", "none": None, "d": {"a": 2}, "big": 1},
        {"i": 3, "f": 2**60 + 1, "s": "z", "l": None, "mixed": [1], "none": None, "d": {"b": "y"}, "big": 1},
    ]
    table = pq.read_table(io.BytesIO(written("o.parquet", rows)))
    assert {field.name: str(field.type) for field in table.schema} == {
        "i": "int64",
        "f": "double",
        "s": "string",
        "l": "list<element: int64>",
        "mixed": "string",
        "none": "string",
        "d": "struct<a: int64, b: string>",
        "big": "string",
    }
    found = table.to_pylist()
    assert [row["mixed"] for row in found] == ["1", "x", "[1]"]
    assert found[2]["d"] == {"a": None, "b": "y"}
    assert pq.read_table(io.BytesIO(written("o.parquet", []))).num_rows == 0


def joined(columns: AnswerColumns, *outcomes: Outcome) -> list[dict[str, Any]]:
    rows = [Row(2 * n, {"n": n}, "broken" if n == 3 else None) for n in range(1, len(outcomes) + 1)]
    lines = [*request_lines(rows, RowPrompt(prompt="x"))]
    return [*answered_rows(lines, [encode_result("x", one, "m") for one in outcomes], columns)]


def test_rows_come_back_with_their_answers_in_order() -> None:
    failed = Failure(type="invalid_request", message="line 6: broken")
    assert joined(AnswerColumns(), answer("A"), answer(""), failed) == [
        {"n": 1, "answer": "A", "error": None},
        {"n": 2, "answer": "", "error": None},
        {"n": 3, "answer": None, "error": "line 6: broken"},
    ]


def test_a_json_answer_becomes_columns_or_one_value() -> None:
    text = '{"label": "good", "stars": 4}'
    spread = AnswerColumns(fields=("label", "stars"), has_json=True)
    assert joined(spread, answer(text)) == [{"n": 1, "label": "good", "stars": 4, "error": None}]
    assert joined(AnswerColumns(has_json=True), answer(text)) == [{"n": 1, "answer": json.loads(text), "error": None}]
    chosen = AnswerColumns(into="label", has_json=True, is_choice=True)
    assert joined(chosen, answer(text)) == [{"n": 1, "label": "good", "error": None}]
    assert joined(chosen, answer("not JSON")) == [{"n": 1, "label": "not JSON", "error": None}]


def test_what_is_stored_with_a_batch_can_be_read_again() -> None:
    table = AnsweredTable(columns=AnswerColumns(into="x", fields=("a", "b")), layout="csv", delimiter=";", is_raw=True)
    assert decode_table(table.encode()) == table


@pytest.mark.parametrize(
    ("table", "output", "expected"),
    [
        ({"layout": "csv", "delimiter": ";"}, None, b"n;a;b;error\n1;x;2;\n"),
        ({"layout": "csv", "delimiter": "\t"}, None, b"n\ta\tb\terror\n1\tx\t2\t\n"),
        ({"layout": "csv", "delimiter": ",", "has_bom": True}, "o.csv", b"\xef\xbb\xbfn,a,b,error\n1,x,2,\n"),
        ({"layout": "csv", "delimiter": ",", "has_bom": True}, "o.jsonl", b'{"n":1,"a":"x","b":2,"error":null}\n'),
        ({"layout": "parquet"}, None, b'{"n":1,"a":"x","b":2,"error":null}\n'),
        ({"layout": "text"}, None, b'{"a":"x","b":2}\n'),
        ({"layout": "csv", "delimiter": ","}, "o.txt", b'{"a":"x","b":2}\n'),
    ],
)
def test_stdout_has_the_layout_of_the_input_and_a_file_that_of_its_name(
    table: dict[str, Any], output: str | None, expected: bytes
) -> None:
    columns = AnswerColumns(fields=("a", "b"), has_json=True)
    lines = [*request_lines([Row(1, {"n": 1})], RowPrompt(prompt="x"))]
    results = [encode_result("x", answer('{"a": "x", "b": 2}'), "m")]
    file = io.BytesIO()
    AnsweredTable(columns=columns, **table).write(lambda: lines, lambda: results, file, output)
    assert file.getvalue() == expected
