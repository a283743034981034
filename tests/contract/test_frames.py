"""Tables as rows and back: every kind in gives the same kind out, with the same cells in the same order."""

import datetime as dt
import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchfile.errors import InvalidFile
from tests.helpers.lines import json_rows, open_frame

CELLS = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)

KINDS: dict[str, Callable[[dict[str, list[Any]]], Any]] = {
    "dicts": lambda columns: pa.table(columns).to_pylist(),
    "pandas": pd.DataFrame,
    "polars": lambda columns: pl.DataFrame(columns, strict=False),
    "arrow": pa.table,
    "reader": lambda columns: pa.table(columns).to_reader(),
    "dataset": datasets.Dataset.from_dict,
}


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> Callable[[dict[str, list[Any]]], Any]:
    return KINDS[request.param]


def read(data: Any, *columns: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in json_rows(open_frame(data).rows(columns))]


def as_dicts(data: Any) -> list[dict[str, Any]]:
    if isinstance(data, pd.DataFrame):
        data = data.astype(object).where(data.notna(), None).to_dict("records")
    if isinstance(data, pl.DataFrame):
        return data.to_dicts()
    if isinstance(data, pa.RecordBatchReader):
        data = data.read_all()
    if isinstance(data, pa.Table):
        return data.to_pylist()
    return [*data]


def test_the_same_kind_comes_back_with_columns_added(make: Callable[[dict[str, list[Any]]], Any]) -> None:
    data = make({"id": [3, 1, 2], "text": ["c", None, "b"]})
    frame = open_frame(data)
    assert frame.columns == ("id", "text")
    assert [*json_rows(frame.rows(["text"]))] == [b'{"text":"c"}\n', b'{"text":null}\n', b'{"text":"b"}\n']
    added = [{"answer": "C", "error": None}, {"answer": None, "error": "no"}, {"answer": "B", "error": None}]
    back = frame.answered(added)
    assert type(back) is type(data)
    assert as_dicts(back) == [
        {"id": 3, "text": "c", "answer": "C", "error": None},
        {"id": 1, "text": None, "answer": None, "error": "no"},
        {"id": 2, "text": "b", "answer": "B", "error": None},
    ]
    if not isinstance(data, pa.RecordBatchReader):
        assert as_dicts(data)[0] == {"id": 3, "text": "c"}, "the caller's table is unchanged"


@pytest.mark.parametrize("kind", ["dicts", "pandas", "polars", "arrow", "reader"])
@given(cells=st.lists(CELLS, min_size=1, max_size=8), answers=st.data())
def test_cells_and_answers_come_through_as_they_are(kind: str, cells: list[Any], answers: st.DataObject) -> None:
    schema = pa.schema([("a", pa.string())])
    data = (
        pa.table([pa.array(cells, pa.string())], schema=schema)
        if kind in {"arrow", "reader"}
        else KINDS[kind]({"a": cells})
    )
    frame = open_frame(data.to_reader() if kind == "reader" else data)
    assert [json.loads(line) for line in json_rows(frame.rows(["a"]))] == [{"a": cell} for cell in cells]
    added = [{"answer": answers.draw(CELLS), "error": None} for _ in cells]
    back = as_dicts(frame.answered(added))
    assert back == [{"a": cell, **more} for cell, more in zip(cells, added, strict=True)]


def test_a_pandas_table_keeps_its_index_and_its_class() -> None:
    class Mine(pd.DataFrame):
        @property
        def _constructor(self) -> type:
            return Mine

    data = Mine({"a": ["x", "y"]}, index=pd.Index(["i", "i"], name="key"))
    frame = open_frame(data)
    assert [*frame.rows(["a"])] == [{"a": "x"}, {"a": "y"}]
    back = frame.answered([{"n": 1, "m": 0.5}, {"n": None, "m": None}])
    assert type(back) is Mine
    assert back.index.equals(data.index)
    assert [str(kind) for kind in back.dtypes[1:]] == ["Int64", "Float64"], "a missing answer changes no type"


def test_views_of_a_dataset_are_read_as_the_view() -> None:
    data = datasets.Dataset.from_dict({"a": ["x", "y", "z"]}).select([2, 0])
    assert read(data, "a") == [{"a": "z"}, {"a": "x"}]


def test_values_of_other_types_have_a_json_form() -> None:
    row = {
        "day": dt.date(2026, 1, 2),
        "at": pd.Timestamp("2026-01-02T03:04"),
        "d": Decimal("1.50"),
        "nan": float("nan"),
        "na": pd.NA,
        "nat": pd.NaT,
        "np": np.int32(7),
        "array": np.array([1, 2]),
        "nested": {"a": [None, {"b": True}]},
    }
    found = {"day": "2026-01-02", "at": "2026-01-02T03:04:00", "d": 1.5, "nan": None, "na": None, "nat": None}
    found |= {"np": 7, "array": [1, 2], "nested": {"a": [None, {"b": True}]}}
    assert read([row], *row) == [found]
    table = pa.table({"at": pa.array([1, None], pa.timestamp("us")), "s": [{"a": [1]}, None], "f": [1.5, float("nan")]})
    first = {"at": "1970-01-01T00:00:00.000001", "s": {"a": [1]}, "f": 1.5}
    for data in (table, pl.DataFrame(table), table.to_pandas()):
        assert read(data, "at", "s", "f") == [first, {"at": None, "s": None, "f": None}]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "the table: has no rows"),
        ([{"a": 1}, [1]], "row 2 must be a dict, got list"),
        ([{1: 2}], "the name of column 1 is not text; rename it to '1'"),
        (({"a": 1} for _ in range(2)), r"generator can be read only once; pass a list of its rows: list\(...\)"),
        ({"a": [1]}, "dict is not a table; pass a pandas or polars DataFrame"),
        (5, "int is not a table"),
        (pd.Series([1]), "Series is one column, not a table"),
        (pl.Series([1]), "Series is one column, not a table"),
        (pa.chunked_array([[1]]), "ChunkedArray is one column"),
        (pl.LazyFrame({"a": [1]}), r"LazyFrame is not a table; collect\(\) it first"),
        (datasets.DatasetDict(), "DatasetDict is not a table; choose one of its splits"),
        (pd.DataFrame({0: [1]}), "the name of column 0 is not text; rename it to '0'"),
        (pd.DataFrame([[1]], columns=pd.MultiIndex.from_tuples([("a", "b")])), "the name of column .* is not text"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "has 2 columns named 'a'"),
        (pa.table([[1], [2]], names=["a", "a"]), "has 2 columns named 'a'"),
    ],
)
def test_what_is_not_a_table_is_rejected_in_one_sentence(data: Any, message: str) -> None:
    with pytest.raises(InvalidFile, match=message):
        _ = open_frame(data).columns


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([{"a": 1}, {"a": object()}], "row 2: column 'a' has a value without a JSON form: type object"),
        ([{"a": "\ud800"}], "row 1: column 'a' has a value without a JSON form"),
        (pd.DataFrame({"a": ["x", pd.Period("2026-01")]}), "row 2: column 'a' has .*: type Period; convert it to text"),
        (pl.DataFrame({"a": [object()]}), "row 1: column 'a' has a value without a JSON form: type object"),
    ],
)
def test_a_cell_that_is_not_data_is_named(data: Any, message: str) -> None:
    with pytest.raises(InvalidFile, match=message):
        read(data, "a")


def test_a_column_of_pandas_may_have_values_of_several_types() -> None:
    at = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
    values = [1, "x", None, float("nan"), pd.Timestamp(at), at, Decimal("1.50"), [1, None], {"b": np.int8(1)}, pd.NaT]
    index = pd.MultiIndex.from_product([["i"], range(len(values))])
    data = pd.DataFrame({"a": pd.Series(values, index, object), "c": pd.Categorical(["k"] * len(values))}, index)
    day = "2026-01-02T00:00:00"
    found = [1, "x", None, None, f"{day}+00:00", f"{day}Z", 1.5, [1, None], {"b": 1}, None]
    assert read(data, "a", "c") == [{"a": value, "c": "k"} for value in found]
    back = open_frame(data).answered([{"answer": None, "error": None}] * len(values))
    assert back.index.equals(index)
    assert back.c.dtype == data.c.dtype
    assert [*map(type, back.a)] == [*map(type, values)], "cells come back as they are"


def test_a_value_that_does_not_fit_its_type_is_kept() -> None:
    values = [{"n": 2**70, "any": 1}, {"n": 1, "any": "x"}]
    back = open_frame(pa.table({"a": [1, 2]})).answered(values)
    assert back["n"].to_pylist() == [str(2**70), "1"]
    assert back["any"].to_pylist() == ["1", "x"], "text, where values have no common type"
