"""Writes rows to Parquet, whose columns get the types of their values. Memory: one group of rows."""

from base64 import b64decode
from collections.abc import Collection
from contextlib import suppress
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from batchfile.rows.write import Rows, as_text, columns_of, grouped, in_order

GROUP_ROWS = 10_000
_DO_NOT_FIT = (pa.ArrowException, TypeError, ValueError, OverflowError)


def write_parquet(rows: Rows, file: BinaryIO, last: Collection[str], input_types: str = "") -> None:
    """Each column has the type that it had in the input, an Arrow schema as base64. One that the input lacks, or whose
    type cannot be made of JSON (bytes, times of day, durations), has the type of its values; JSON text if they have no
    common one.
    """
    schema = _schema(rows, last, _kept(input_types))
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for some in grouped(rows, GROUP_ROWS):
            arrays = [typed_array([row.get(field.name) for row in some], field.type) for field in schema]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _kept(input_types: str) -> dict[str, Any]:
    """The types of the input that can be made of JSON. Bytes are base64 there, which Arrow would take as the bytes."""
    if not input_types:
        return {}
    schema = pa.ipc.read_schema(pa.py_buffer(b64decode(input_types)))
    return {field.name: field.type for field in schema if "binary" not in str(field.type)}


def _schema(rows: Rows, last: Collection[str], kept: dict[str, Any]) -> Any:
    types: dict[str, Any] = {}
    for some in grouped(rows, GROUP_ROWS):
        for name in columns_of(some):
            values = [row.get(name) for row in some]
            is_kept = name in kept and _restored(values, kept[name]) is not None
            found = kept[name] if is_kept else type_of(values)
            types[name] = found if name not in types else _common(types[name], found)
    fields = [(name, types[name]) for name in in_order(types, last)]
    return pa.schema([(name, pa.string() if pa.types.is_null(kind) else kind) for name, kind in fields])


def type_of(values: list[Any]) -> Any:
    """The Arrow type of JSON values; text if they have no common one."""
    try:
        return pa.array(values).type
    except _DO_NOT_FIT:
        return pa.string()


def _restored(values: list[Any], kind: Any) -> Any:
    """JSON values as an array of this type; None if they do not fit."""
    with suppress(*_DO_NOT_FIT):
        return pa.array(values, kind)
    with suppress(*_DO_NOT_FIT):
        return pa.array(values).cast(kind)
    return None


def _common(one: Any, other: Any) -> Any:
    try:
        both = [pa.schema([("", one)]), pa.schema([("", other)])]
        return pa.unify_schemas(both, promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.string()


def typed_array(values: list[Any], kind: Any) -> Any:
    """As an Arrow array of a type that the values fit. Values of text that are not text become JSON."""
    if pa.types.is_string(kind):
        values = [value if value is None else as_text(value) for value in values]
    elif pa.types.is_floating(kind):
        values = [value if value is None else float(value) for value in values]  # Arrow rejects large integers
    return _restored(values, kind)
