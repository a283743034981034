"""Parquet in and out: rows of requests to JSONL, result lines to rows. A few hundred rows in memory at a time.

Columns in: `custom_id` and either `messages` (a list of structs, or JSON text) or `prompt` with an optional `system`,
besides any sampling column. Other columns are left out. Knows no store.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from typing import Any, BinaryIO

import msgspec

from batchfile.errors import InvalidFile
from batchfile.lines.result import NativeResult, decode_result

BATCH_ROWS = 32  # a few bytes of a file may be many MiB of each row
SLICE_BYTES = 4 * 1024 * 1024  # so much of it becomes Python's objects at once, which take ten times as much
ROW_GROUP_ROWS = 10_000

_INTEGERS = ("max_tokens", "top_k", "seed")
_NUMBERS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
_SAMPLING = (*_INTEGERS, *_NUMBERS, "stop_sequences", "model")
_COLUMNS = ("custom_id", "messages", "system", "prompt", *_SAMPLING)
_NEAR = 0.8  # how alike a column's name must be to count as a misspelling

RESULT_COLUMNS = (
    "custom_id",
    "status",
    "text",
    "stop_reason",
    "model",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "error_type",
    "error_message",
)
_COUNTS = frozenset({"input_tokens", "output_tokens", "cached_tokens"})


def parquet_lines(path: str, stream: BinaryIO | None = None) -> Iterator[bytes]:
    """Each row as a `params` line, many rows to a chunk. With `stream`, `path` only names what is read from it.

    Raises: InvalidFile naming the column or the row.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        # Not mapped and not prefetched: memory stays at one batch of one row group.
        with pq.ParquetFile(stream or path, memory_map=False, pre_buffer=False) as file:
            columns = _check_columns(path, file.schema_arrow)
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
                    for part in _slices(batch):
                        yield b"".join(_line(path, row + i, values) for i, values in enumerate(part.to_pylist()))
                        row += part.num_rows
    except pa.ArrowException as error:
        raise InvalidFile(f"{path}: the Parquet data is damaged: {error}") from None
    except UnicodeDecodeError as error:
        raise InvalidFile(f"{path}: a text after row {row} is not valid UTF-8; write it as UTF-8") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise InvalidFile(f"{path}: the Parquet data is damaged: {error}") from None


def _slices(batch: Any) -> Iterator[Any]:
    rows = max(1, SLICE_BYTES * batch.num_rows // max(1, batch.nbytes))
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def write_results(lines: Iterable[bytes], target: str | BinaryIO) -> None:
    """Native result lines to a Parquet file, or to a stream. A request with several choices gives its first text,
    an embedding its vectors as JSON text.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.int64() if name in _COUNTS else pa.string()) for name in RESULT_COLUMNS])
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        rows: list[dict[str, object]] = []
        for line in lines:
            rows.append(_row(line))
            if len(rows) >= ROW_GROUP_ROWS:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema))


def _row(line: bytes) -> dict[str, object]:
    result = decode_result(line)
    usage, error = result.usage, result.error
    return {
        "custom_id": result.custom_id,
        "status": result.status,
        "text": _text(result),
        "stop_reason": result.stop_reason,
        "model": result.model,
        "input_tokens": usage and usage.input_tokens,
        "output_tokens": usage and usage.output_tokens,
        "cached_tokens": usage and usage.cached_tokens,
        "error_type": error and error.type,
        "error_message": error and error.message,
    }


def _text(result: NativeResult) -> str | None:
    """Of an embedding its vectors, as JSON."""
    if result.vectors is not None:
        return msgspec.json.encode(result.vectors).decode()
    return "".join(block.text for block in result.message.content) if result.message else None


def _check_columns(path: str, schema: Any) -> list[str]:
    """The columns to read. Raises: InvalidFile."""
    import pyarrow.types as is_

    names = list(schema.names)
    if "custom_id" not in names:
        raise InvalidFile(f"{path}: has no column custom_id; there are {', '.join(names)[:300]}")
    if "messages" in names and "prompt" in names:
        raise InvalidFile(f"{path}: has both columns messages and prompt; keep one of them")
    if "messages" not in names and "prompt" not in names:
        raise InvalidFile(f"{path}: needs a column messages or prompt; there are {', '.join(names)[:300]}")
    for name in names:
        near = get_close_matches(name, _COLUMNS, n=1, cutoff=_NEAR) if name not in _COLUMNS else []
        if near and near[0] not in names:
            raise InvalidFile(f"{path}: column {name}: did you mean {near[0]}? Rename it, or drop it")

    def is_text(kind: Any) -> bool:
        kind = kind.value_type if is_.is_dictionary(kind) else kind
        return bool(is_.is_string(kind) or is_.is_large_string(kind) or is_.is_null(kind))

    def is_number(kind: Any) -> bool:
        return bool(is_.is_integer(kind) or is_.is_floating(kind) or is_.is_null(kind))

    def is_turns(kind: Any) -> bool:
        return is_text(kind) or bool((is_.is_list(kind) or is_.is_large_list(kind)) and is_.is_struct(kind.value_type))

    def is_texts(kind: Any) -> bool:
        return (bool(is_.is_list(kind) or is_.is_large_list(kind)) and is_text(kind.value_type)) or is_text(kind)

    rules: dict[str, tuple[Callable[[Any], bool], str]] = {
        "messages": (is_turns, "a list of structs with role and content, or JSON text"),
        "stop_sequences": (is_texts, "text, or a list of text"),
        **dict.fromkeys(("custom_id", "system", "prompt", "model"), (is_text, "text")),
        **dict.fromkeys((*_INTEGERS, *_NUMBERS), (is_number, "a number")),
    }
    wanted = [name for name in names if name in _COLUMNS]
    for name in wanted:
        is_right, what = rules[name]
        kind = schema.field(name).type
        if not is_right(kind):
            raise InvalidFile(f"{path}: column {name} is {kind}; it must be {what}")
    return wanted


def _line(path: str, row: int, values: dict[str, Any]) -> bytes:
    params: dict[str, Any] = {}
    for name in _SAMPLING:
        value = _plain(name, values.get(name))
        if value is not None:
            params[name] = value
    if values.get("system") is not None:
        params["system"] = values["system"]
    if "prompt" in values:
        params["messages"] = [{"role": "user", "content": values["prompt"]}]
    else:
        params["messages"] = _turns(path, row, values["messages"])
    try:
        return msgspec.json.encode({"custom_id": values["custom_id"], "params": params}) + b"\n"
    except RecursionError:
        raise InvalidFile(f"{path}: row {row + 1}: messages is nested too deeply") from None


def _turns(path: str, row: int, value: Any) -> Any:
    if not isinstance(value, str):
        # A struct column gives every field to every turn: those without a value were not meant.
        return value and [turn and {key: item for key, item in turn.items() if item is not None} for turn in value]
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidFile(f"{path}: row {row + 1}: messages is not valid JSON: {error}") from None


def _plain(name: str, value: Any) -> Any:
    """Data frames keep missing numbers as NaN and whole numbers with gaps as floats."""
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if name in _INTEGERS and value.is_integer():
            return int(value)
    return [value] if name == "stop_sequences" and isinstance(value, str) else value
