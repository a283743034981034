"""The rows of a file, from its bytes."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchfile.errors import InvalidFile
from batchfile.types import LINE_BYTES_MAX
from tests.helpers.lines import FileKind, Row, read_rows

CSV = FileKind(layout="csv", content="rows", delimiter=",")
JSONL = FileKind(layout="jsonl", content="rows")
TEXT = FileKind(layout="text", content="rows")


def rows(data: bytes, kind: FileKind = CSV, *, size: int = 7, is_one: bool = False) -> list[Row]:
    chunks = [data[at : at + size] for at in range(0, len(data), size)]
    return list(read_rows(chunks, kind, "a.csv", is_one=is_one))


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@given(
    st.lists(st.lists(CELL, min_size=2, max_size=2), min_size=1, max_size=6),
    st.sampled_from(",;\t|"),
    st.sampled_from(["\n", "\r\n"]),
)
def test_a_csv_file_gives_the_rows_that_were_written(cells: list[list[str]], delimiter: str, ending: str) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator=ending, quoting=csv.QUOTE_ALL)
    writer.writerows([["a", "b"], *cells])
    kind = FileKind(layout="csv", content="rows", delimiter=delimiter)
    found = rows(text.getvalue().encode(), kind)
    assert [[*row.values.values()] for row in found] == cells
    assert [row.problem for row in found] == [None] * len(cells)


def test_a_row_has_the_line_where_it_begins() -> None:
    found = rows(b'\xef\xbb\xbf a ,b\n"1\n2",x\n\n"3\n4\n5",y\n6,z')
    assert [(row.line, row.values["a"]) for row in found] == [(2, "1\n2"), (5, "3\n4\n5"), (8, "6")]


@pytest.mark.parametrize("bad", ["1", "1,2,3", '"1"x,2', '1,"2" '])
def test_a_bad_row_of_csv_fails_alone(bad: str) -> None:
    before, one, after = rows(f"a,b\n0,0\n{bad}\n3,4\n".encode())
    assert one.problem
    assert one.line == 3
    assert (before.problem, after) == (None, Row(4, {"a": "3", "b": "4"}))


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_bad_last_row_without_a_newline_fails_alone(size: int) -> None:
    good, bad = rows(b'a,b\n1,2\n"3"x,4', size=size)
    assert good == Row(2, {"a": "1", "b": "2"})
    assert (bad.line, bad.problem and bad.problem.startswith("is not valid CSV")) == (3, True)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'a,b\n1,2\n3,"x\n4,5\n', "line 3 is never closed"),
        (b'a,b\n1,2\n3,"x', "line 3 is never closed"),
        (b"a,b,a\n1,2,3\n", "2 columns named 'a'"),
        (b"a,b\n\n", "^a.csv: has a header and no rows$"),
        ("a,b\n1,2\nü,4\n".encode("cp1252"), "line 3: byte 0xfc is not UTF-8"),
        (b"a,b\n1,\xc3", "line 2: byte 0xc3"),
        (b'"a"x,b\n1,2\n', "its header is not valid CSV"),
    ],
)
def test_a_file_that_cannot_be_read_is_rejected_with_its_place(data: bytes, message: str) -> None:
    with pytest.raises(InvalidFile, match=message):
        rows(data)


@pytest.mark.parametrize("start", [b'a,b\n1,"', b"a,b\n1,"])
def test_a_cell_that_does_not_end_is_rejected_before_it_fills_the_memory(start: bytes) -> None:
    num_read = 0

    def endless() -> object:
        nonlocal num_read
        yield start
        for num_read in range(1_000_000):  # noqa: B007 counts what was read
            yield b"x" * 1024 * 1024 + (b"\n" if start.endswith(b'"') else b"")

    with pytest.raises(InvalidFile, match="line 2 is longer than 16 MiB"):
        list(read_rows(endless(), CSV, "a.csv"))  # type: ignore[arg-type]
    assert num_read * 1024 * 1024 < 2 * LINE_BYTES_MAX


def test_rows_of_json_are_read_as_they_are_and_bad_ones_fail_alone() -> None:
    lines = ['{"a": 1.0, "b": [1, {"c": null}]}', "17", '{"a": }', '{"a": 1, "a": 2}', '{"a": "é"}', '{"a": 1e400}']
    found = rows("\n\n".join(lines).encode(), JSONL)
    assert [row.line for row in found] == [1, 3, 5, 7, 9, 11]
    assert found[0].values == json.loads(lines[0])
    assert "must be an object with the columns of the row, got 17" in (found[1].problem or "")
    assert "is not valid JSON" in (found[2].problem or "")
    assert "twice" in (found[3].problem or "")
    assert found[4] == Row(9, {"a": "é"})
    assert found[5].problem == "cannot be read: Number out of range - at `$[...]`"


def test_each_line_of_text_is_a_prompt_or_all_of_it_is_one() -> None:
    data = "\ufeffOne\r\n\n  two, é\n".encode()
    assert rows(data, TEXT) == [Row(1, {"prompt": "One"}), Row(3, {"prompt": "  two, é"})]
    assert rows(data, TEXT, is_one=True) == [Row(1, {"prompt": "One\r\n\n  two, é"})]
    assert rows(b" \n", TEXT, is_one=True) == []
    with pytest.raises(InvalidFile, match="line 2: byte 0xfc"):
        rows("a\nü".encode("cp1252"), TEXT)
