"""Reads requests from Parquet as JSONL, and writes results to Parquet. Keeps a few hundred rows in memory at a time.

Input columns: `custom_id` and either `messages` (a list of structs, or JSON text) or `prompt` with an optional
`system`, and optionally sampling parameters. A column named like another key of a request makes the file invalid; other
columns are ignored.
"""

import math
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Any, BinaryIO

import msgspec

from batchfile.errors import UNREADABLE, InvalidFile
from batchfile.lines.formats import native, openai_chat, openai_completions, openai_embeddings
from batchfile.lines.formats.shared import without_effect
from batchfile.lines.key_advice import NOT_SERVED, OTHERWISE, SAME, typo_of
from batchfile.lines.kinds import Content, FileKind
from batchfile.lines.result import NativeResult, decode_result
from batchfile.types import LINE_BYTES_MAX

INTEGERS = ("max_tokens", "top_k", "seed")
NUMBERS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
_TEXTS = ("stop_sequences", "model")
SAMPLING = (*INTEGERS, *NUMBERS, *_TEXTS)
COLUMNS = ("custom_id", "messages", "system", "prompt", *SAMPLING)
_FORMATS = (native.Params, openai_chat.Body, openai_completions.Body, openai_embeddings.Body)
_OUTSIDE = frozenset({"params", "body", "metadata", "model_hint"})  # keys of a line or of its metadata
# Keys of a request, or of other APIs, that would change an answer but cannot be columns. Keys without an effect are
# ignored like any other column.
REQUEST_KEYS = _OUTSIDE.union(
    *(model.model_fields.keys() - without_effect(model) for model in _FORMATS), SAME, OTHERWISE, NOT_SERVED
).difference(COLUMNS)


def wanted_columns(path: str, schema: Any) -> list[str]:
    """The columns to read, all of whose types can be written as JSON. Raises: InvalidFile."""
    names = list(schema.names)
    shown = ", ".join(names)[:300]
    if "custom_id" not in names:
        raise InvalidFile(f"{path}: has no column custom_id; its columns are {shown}")
    if "messages" in names and "prompt" in names:
        raise InvalidFile(f"{path}: has both columns messages and prompt; keep one of them")
    if "messages" not in names and "prompt" not in names:
        raise InvalidFile(f"{path}: needs a column messages or prompt; its columns are {shown}")
    empty = {field.name for field in schema if field.name in REQUEST_KEYS and _is(_bare(field.type), "null")}
    check_request_columns(path, [name for name in names if name not in empty])
    wanted = [name for name in names if name in COLUMNS]
    for name, num in Counter(wanted).items():
        if num > 1:
            raise InvalidFile(f"{path}: has {num} columns named {name}; keep one of them")
    for name in wanted:
        is_right, what = _RULES[name]
        kind = schema.field(name).type
        if not is_right(kind):
            raise InvalidFile(f"{path}: column {name} is {kind}; it must be {what}")
        for wrong in _without_json(kind, name):
            raise InvalidFile(f"{path}: column {wrong}")
    return wanted


def is_request_table(columns: Sequence[str]) -> bool:
    """Whether a table with these columns has requests and nothing else."""
    return "custom_id" in columns and {*columns} <= {*COLUMNS} and not {"messages", "prompt"}.isdisjoint(columns)


def kind_of_table(columns: Sequence[str], types: str, *, is_table: bool = False) -> FileKind:
    """The kind of a Parquet file, of what `parquet_columns` says. `is_table`: its rows are wanted, not requests."""
    content: Content = "requests" if is_request_table(columns) and not is_table else "rows"
    return FileKind(layout="parquet", content=content, columns=tuple(columns), types=types)


def check_request_columns(path: str, names: Sequence[str]) -> None:
    """Raises: InvalidFile for a column that looks like a part of a request, but would be ignored."""
    for name in names:
        if name in REQUEST_KEYS:
            raise InvalidFile(f"{path}: column {name}: {_unread(name, names)}")
        near = None if name in COLUMNS else typo_of(name, COLUMNS)
        if near is not None and near not in names:
            raise InvalidFile(f"{path}: column {name} is unknown; did you mean {near}? Rename it or drop it")


def _is(kind: Any, *names: str) -> bool:
    """Whether a type is one of these, by their names in pyarrow.types."""
    import pyarrow.types

    return any(getattr(pyarrow.types, f"is_{name}")(kind) for name in names)


def _bare(kind: Any) -> Any:
    """The type of the values inside extension types and dictionaries."""
    import pyarrow as pa

    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif _is(kind, "dictionary"):
            kind = kind.value_type
        else:
            return kind


def _unread(name: str, names: Sequence[str]) -> str:
    ours = next((ours for ours in SAME.get(name, ()) if ours in COLUMNS and ours not in names), None)
    if ours is not None:
        return f"is not supported; rename it to {ours}, or to another name if it is data"
    hint = next((hint for known, hint in OTHERWISE.get(name, ()) if known in COLUMNS), None)
    if hint is not None:
        return f"{hint.message}, or rename it if it is data"
    return f"{name} is not supported in Parquet; drop it, rename it if it is data, or write the requests as JSONL"


def _is_text(kind: Any) -> bool:
    return _is(_bare(kind), "string", "large_string", "string_view", "null")


def _is_number(kind: Any) -> bool:
    return _is(_bare(kind), "integer", "floating", "decimal", "null")


def _is_id(kind: Any) -> bool:
    """Data frames turn whole numbers into floats; a row with any other number is rejected on its own."""
    return _is_text(kind) or _is_number(kind)


def _is_list(kind: Any) -> bool:
    return _is(kind, "list", "large_list", "fixed_size_list", "list_view", "large_list_view")


def _is_turns(kind: Any) -> bool:
    kind = _bare(kind)
    return _is_text(kind) or (_is_list(kind) and _is(_bare(kind.value_type), "struct"))


def _is_texts(kind: Any) -> bool:
    kind = _bare(kind)
    return _is_text(kind) or (_is_list(kind) and _is_text(kind.value_type))


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "messages": (_is_turns, "a list of structs with role and content, or JSON text"),
    "stop_sequences": (_is_texts, "text, or a list of text"),
    "custom_id": (_is_id, "text or a whole number"),
    **dict.fromkeys(("system", "prompt", "model"), (_is_text, "text")),
    **dict.fromkeys((*INTEGERS, *NUMBERS), (_is_number, "a number")),
}


def _without_json(kind: Any, place: str) -> Iterator[str]:
    """Problems of a type that cannot be written as JSON. Times are rejected because they have no standard form."""
    kind = _bare(kind)
    if _is(kind, "struct"):
        fields = [kind.field(number) for number in range(kind.num_fields)]
        for name, num in Counter(field.name for field in fields).items():
            if num > 1:
                yield f"{place} has {num} fields named {name}; keep one of them"
        for field in fields:
            yield from _without_json(field.type, f"{place}.{field.name}")
    elif _is_list(kind):
        yield from _without_json(kind.value_type, place)
    elif not (_is_text(kind) or _is_number(kind) or _is(kind, "boolean")):
        yield f"{place} is {kind}; cast it to text, or drop it"


BATCH_ROWS = 32  # a few bytes of a file can expand to many MiB per row
BATCH_BYTES = 64 * 1024 * 1024  # fewer rows if the footer says that they are large
ROW_BYTES_MAX = 8 * LINE_BYTES_MAX  # of one column: the average over a row group, by the footer
BUFFER_BYTES = 1024 * 1024  # read at a time, instead of a column of a whole row group
SLICE_BYTES = 4 * 1024 * 1024  # converted to Python objects at a time, which take ten times as much memory
ROW_GROUP_ROWS = 10_000

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

DECIMAL_DIGITS_MAX = 15  # that a JSON number keeps in every reader

_encoder = msgspec.json.Encoder(decimal_format="number")
# Arrow gives times with nanoseconds as those of pandas, if it is installed.
_row_encoder = msgspec.json.Encoder(decimal_format="number", enc_hook=lambda value: value.isoformat())


def parquet_lines(path: str, stream: BinaryIO | None = None, *, as_rows: bool = False) -> Iterator[bytes]:
    """Each row as a `params` line, or `as_rows` as an object with all its columns, many rows per chunk. With a
    `stream`, `path` is only for messages.

    A damaged file may crash the process, so call this in a child process (see `converter`).
    Raises: InvalidFile naming the column or the row; MemoryError.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        # Without mapping and prefetching, memory stays at one batch of one row group.
        with pq.ParquetFile(stream or path, memory_map=False, pre_buffer=False, buffer_size=BUFFER_BYTES) as file:
            columns = all_columns(path, file.schema_arrow) if as_rows else wanted_columns(path, file.schema_arrow)
            encode = _row_line if as_rows else _line
            for group in range(file.num_row_groups):
                if not file.metadata.row_group(group).num_rows:
                    continue  # its pages have headers all the same, which Arrow would read
                row_bytes = _row_bytes(path, file.metadata.row_group(group), columns, group)
                rows = min(BATCH_ROWS, max(1, BATCH_BYTES // max(1, row_bytes)))
                for batch in file.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False):
                    for part in _slices(_exact(batch) if as_rows else batch):
                        yield b"".join(map(encode, part.to_pylist()))
                        row += part.num_rows
    except MemoryError:  # also Arrow's, which is an ArrowException too and does not mean damage
        raise
    except pa.ArrowException as error:
        raise InvalidFile(damaged(path, error)) from None
    except UnicodeDecodeError as error:
        raise InvalidFile(f"{path}: text after row {row} is not valid UTF-8; write it as UTF-8") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise InvalidFile(damaged(path, error)) from None


def parquet_columns(path: str, stream: BinaryIO) -> Iterator[bytes]:
    """The names of the columns and their types (an Arrow schema as base64), as one JSON list.

    Raises: as `parquet_lines`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(stream)
        types = b64encode(schema.remove_metadata().serialize()).decode()
        yield msgspec.json.encode([all_columns(path, schema), types])
    except (pa.ArrowException, OSError) as error:
        raise InvalidFile(damaged(path, error)) from None


def all_columns(path: str, schema: Any) -> list[str]:
    """Raises: InvalidFile where two have one name."""
    for name, num in Counter(schema.names).items():
        if num > 1:
            raise InvalidFile(f"{path}: has {num} columns named {name}; give each its own name")
    return list(schema.names)


def _row_line(values: dict[str, Any]) -> bytes:
    return _row_encoder.encode(values) + b"\n"


def _exact(batch: Any) -> Any:
    """With long decimals as text, whose digits a JSON number would lose."""
    import pyarrow as pa

    for number, field in enumerate(batch.schema):
        if _is(field.type, "decimal") and field.type.precision > DECIMAL_DIGITS_MAX:
            batch = batch.set_column(number, field.name, batch.column(number).cast(pa.string()))
    return batch


def _row_bytes(path: str, group: Any, columns: list[str], number: int) -> int:
    """Bytes per row by the footer, which may be wrong. Raises: InvalidFile if a row is too large for a request."""
    sizes = dict.fromkeys(columns, 0)
    for n in range(group.num_columns):
        column = group.column(n)
        name = column.path_in_schema.partition(".")[0]
        if name in sizes:
            sizes[name] += column.total_uncompressed_size
    for name, size in sizes.items():
        if size > ROW_BYTES_MAX * group.num_rows:
            raise InvalidFile(
                f"{path}: column {name} has {size:,} bytes in the {group.num_rows:,} rows of row group {number}; "
                f"the limit for a request is {LINE_BYTES_MAX // 2**20} MiB"
            )
    return sum(sizes.values()) // int(group.num_rows)


def damaged(path: str, error: Exception) -> str:
    reason = " ".join(str(error).split())
    return f"{path}: the Parquet data is damaged or not supported: {reason}; write the file again"


def _slices(batch: Any) -> Iterator[Any]:
    rows = max(1, SLICE_BYTES * batch.num_rows // max(1, batch.nbytes))
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def write_results(lines: Iterable[bytes], target: str | BinaryIO) -> None:
    """Writes native result lines to a Parquet file or a stream. For several choices, `text` is that of the first; for
    an embedding, it is the vectors as JSON.
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
    """The text of the answer; for an embedding, its vectors as JSON."""
    if result.vectors is not None:
        return msgspec.json.encode(result.vectors).decode()
    return "".join(block.text for block in result.message.content) if result.message else None


def _line(values: dict[str, Any]) -> bytes:
    return _encoder.encode({"custom_id": values["custom_id"], "params": params_of(values)}) + b"\n"


def params_of(values: dict[str, Any]) -> dict[str, Any]:
    """The `params` of a row with the columns of a request. A value that cannot be one is left as it is, and rejected
    with its line.
    """
    params: dict[str, Any] = {}
    for name in SAMPLING:
        value = _plain(name, values.get(name))
        if value is not None:
            params[name] = value
    if values.get("system") is not None:
        params["system"] = values["system"]
    if "prompt" in values:
        params["messages"] = [{"role": "user", "content": values["prompt"]}]
    else:
        params["messages"] = _turns(values["messages"])
    return params


def _turns(value: Any) -> Any:
    """Text that is not JSON stays text, so that only its own line is rejected."""
    if not isinstance(value, str):
        # A struct column has every field in every turn: those without a value are left out.
        return value and [turn and {key: item for key, item in turn.items() if item is not None} for turn in value]
    try:
        return msgspec.Raw(_encoder.encode(msgspec.json.decode(value)))  # without line breaks
    except UNREADABLE:
        return value


def _number_of(text: str) -> Any:
    """The number that a cell of CSV contains; other text stays, and is rejected. None: the cell is empty."""
    try:
        return msgspec.json.decode(text, type=int | float) if text else None
    except UNREADABLE:
        return text


def _plain(name: str, value: Any) -> Any:
    """Data frames keep missing numbers as NaN and whole numbers with gaps as floats; databases have decimals.

    Infinity is not valid in JSON. It becomes text, which is rejected, because null would mean the default.
    """
    if isinstance(value, str) and name not in _TEXTS:
        value = _number_of(value)
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if math.isinf(value):
            return str(value)
        if name in INTEGERS and value.is_integer():
            return int(value)
    return [value] if name == "stop_sequences" and isinstance(value, str) else value
