"""Tables that Arrow can read, as rows, and back with further columns as tables of the library that they came from."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from batchfile.errors import InvalidFile
from batchfile.rows.frames import NAME, Frame, check_names
from batchfile.rows.write_parquet import type_of, typed_array

Rows = Iterator[dict[str, Any]]

CHUNK_ROWS = 1000
# Each with a value for "missing", so that a failed row changes no type.
_PANDAS = {pa.string(): "string", pa.int64(): "Int64", pa.float64(): "Float64", pa.bool_(): "boolean"}


@dataclass(frozen=True, slots=True)
class _ArrowFrame:
    """`columns`: all of the table's; `read`: the rows, with some of them; `extend`: the table with further columns."""

    columns: tuple[str, ...]
    read: Callable[[list[str]], Rows]
    extend: Callable[[Any], Any]

    def rows(self, columns: Sequence[str]) -> Rows:
        return self.read([*columns])

    def answered(self, added: Sequence[dict[str, Any]]) -> Any:
        columns = {name: _column([row[name] for row in added]) for name in added[0]}
        return self.extend(pa.table(columns))


def open_arrow(data: Any, owner: str | None) -> Frame:
    """`owner`: the library whose table it is; None for any other with an Arrow stream. Raises: InvalidFile."""
    if owner is not None:
        read, extend = {"pandas": (_read_pandas, _extend_pandas), "polars": (_read_polars, _extend_polars)}.get(
            owner, (_read_dataset, _extend_dataset)
        )
        names = check_names(data.column_names if owner == "datasets" else data.columns)
        return _ArrowFrame(names, lambda columns: read(data, columns), lambda added: extend(data, added))
    try:
        table = pa.RecordBatchReader.from_stream(data).read_all()
    except pa.ArrowException as error:
        raise InvalidFile(f"{type(data).__name__} is not a table: {error}") from None

    def extend_table(added: Any) -> Any:
        whole = table
        for name in added.column_names:
            whole = whole.append_column(name, added[name])
        return whole.to_reader() if isinstance(data, pa.RecordBatchReader) else whole

    return _ArrowFrame(
        check_names(table.column_names), lambda columns: _rows_of(table.select(columns).to_batches()), extend_table
    )


def _rows_of(parts: Iterable[Any]) -> Rows:
    """`parts`: Arrow tables or record batches."""
    try:
        for part in parts:
            for start in range(0, part.num_rows, CHUNK_ROWS):
                yield from part.slice(start, CHUNK_ROWS).to_pylist()
    except (pa.ArrowException, ValueError) as error:
        reason = " ".join(" ".join(map(str, error.args)).split())
        raise InvalidFile(f"{NAME}: Arrow cannot read it: {reason}; convert the column to text") from None


def _read_pandas(data: Any, columns: list[str]) -> Rows:
    """Not with Arrow, which cannot read a column whose values have several types."""
    for start in range(0, len(data), CHUNK_ROWS):
        part = data.iloc[start : start + CHUNK_ROWS]
        for values in zip(*(part[name].tolist() for name in columns), strict=True):
            yield dict(zip(columns, values, strict=True))


def _extend_pandas(data: Any, added: Any) -> Any:
    import pandas as pd

    return data.assign(
        **{
            name: pd.Series(added[name].to_pylist(), data.index, _PANDAS.get(added[name].type, object))
            for name in added.column_names
        }
    )


def _read_polars(data: Any, columns: list[str]) -> Rows:
    yield from data.select(columns).iter_rows(named=True)


def _extend_polars(data: Any, added: Any) -> Any:
    import polars

    return data.with_columns(polars.DataFrame(added).get_columns())


def _read_dataset(data: Any, columns: list[str]) -> Rows:
    return _rows_of(part.select(columns) for part in data.with_format("arrow").iter(CHUNK_ROWS))


def _extend_dataset(data: Any, added: Any) -> Any:
    import datasets

    return datasets.concatenate_datasets([data, datasets.Dataset(added)], axis=1)


def _column(values: list[Any]) -> Any:
    found = type_of(values)
    return typed_array(values, pa.string() if pa.types.is_null(found) else found)
