"""Writes rows to Parquet, whose columns get the types of their values. Memory: one group of rows."""

from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from batchfile.rows.write import Rows, as_text, columns_of, grouped

GROUP_ROWS = 10_000


def write_parquet(rows: Rows, file: BinaryIO) -> None:
    """Each column has the type of its values; one whose values have no common type is JSON text."""
    schema = _schema(rows)
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for some in grouped(rows, GROUP_ROWS):
            arrays = [typed_array([row.get(field.name) for row in some], field.type) for field in schema]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _schema(rows: Rows) -> Any:
    types: dict[str, Any] = {}
    for some in grouped(rows, GROUP_ROWS):
        for name in columns_of(some):
            found = type_of([row.get(name) for row in some])
            types[name] = found if name not in types else _common(types[name], found)
    return pa.schema([(name, pa.string() if pa.types.is_null(kind) else kind) for name, kind in types.items()])


def type_of(values: list[Any]) -> Any:
    """The Arrow type of JSON values; text if they have no common one."""
    try:
        return pa.array(values).type
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        return pa.string()


def _common(one: Any, other: Any) -> Any:
    try:
        both = [pa.schema([("", one)]), pa.schema([("", other)])]
        return pa.unify_schemas(both, promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.string()


def typed_array(values: list[Any], kind: Any) -> Any:
    """As an Arrow array of a type that `type_of` has found. Values of text that are not text become JSON."""
    if pa.types.is_string(kind):
        values = [value if value is None else as_text(value) for value in values]
    elif pa.types.is_floating(kind):
        values = [value if value is None else float(value) for value in values]  # Arrow rejects large integers
    return pa.array(values, kind)
