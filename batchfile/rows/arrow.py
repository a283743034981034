"""Tables that Arrow can read, as rows, and back with further columns as tables of the library that they came from."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from batchfile.errors import InvalidFile
from batchfile.rows.frames import NAME, Frame, check_names
from batchfile.rows.write_parquet import type_of, typed_array

CHUNK_ROWS = 1000
# Each with a value for "missing", so that a failed row changes no type.
_PANDAS = {pa.string(): "string", pa.int64(): "Int64", pa.float64(): "Float64", pa.bool_(): "boolean"}


@dataclass(frozen=True, slots=True)
class _ArrowFrame:
    """`columns`: all of the table's; `read`: some of them, as Arrow tables or record batches; `extend`: the table with
    further columns.
    """

    columns: tuple[str, ...]
    read: Callable[[list[str]], Any]
    extend: Callable[[Any], Any]

    def rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        try:
            for part in self.read([*columns]):
                for start in range(0, part.num_rows, CHUNK_ROWS):
                    yield from part.slice(start, CHUNK_ROWS).to_pylist()
        except (pa.ArrowException, ValueError) as error:
            reason = " ".join(" ".join(map(str, error.args)).split())
            raise InvalidFile(f"{NAME}: Arrow cannot read it: {reason}; convert the column to text") from None

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
        check_names(table.column_names), lambda columns: table.select(columns).to_batches(), extend_table
    )


def _read_pandas(data: Any, columns: list[str]) -> Any:
    return pa.RecordBatchReader.from_stream(data[columns].reset_index(drop=True))


def _extend_pandas(data: Any, added: Any) -> Any:
    import pandas as pd

    return data.assign(
        **{
            name: pd.Series(added[name].to_pylist(), data.index, _PANDAS.get(added[name].type, object))
            for name in added.column_names
        }
    )


def _read_polars(data: Any, columns: list[str]) -> Any:
    import polars

    chosen = data.select(columns)
    for name, kind in chosen.schema.items():
        if kind == polars.Object:  # Arrow gets the addresses of the objects
            raise InvalidFile(f"{NAME}: column {name!r} has Python objects; convert it to text")
    return pa.RecordBatchReader.from_stream(chosen)


def _extend_polars(data: Any, added: Any) -> Any:
    import polars

    return data.with_columns(polars.DataFrame(added).get_columns())


def _read_dataset(data: Any, columns: list[str]) -> Any:
    for part in data.with_format("arrow").iter(CHUNK_ROWS):
        yield part.select(columns)


def _extend_dataset(data: Any, added: Any) -> Any:
    import datasets

    return datasets.concatenate_datasets([data, datasets.Dataset(added)], axis=1)


def _column(values: list[Any]) -> Any:
    found = type_of(values)
    return typed_array(values, pa.string() if pa.types.is_null(found) else found)
