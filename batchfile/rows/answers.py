"""Joins rows with their results: the same rows in the same order, with further columns. Pure."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from batchfile.errors import UNREADABLE
from batchfile.lines.framing import iter_lines
from batchfile.lines.result import NativeResult, decode_result
from batchfile.rows.prompt import AnswerColumns

AnswerCheck = Callable[[Any], str | None]


class _Metadata(msgspec.Struct):
    row: dict[str, Any]


class _RequestLine(msgspec.Struct):
    metadata: _Metadata


_row = msgspec.json.Decoder(_RequestLine)


def answered_rows(
    requests: Iterable[bytes],
    results: Iterable[bytes],
    columns: AnswerColumns,
    check: AnswerCheck = lambda answer: None,
) -> Iterator[dict[str, Any]]:
    """`requests`: chunks of the lines that were made of the rows; `results`: one native result line for each, in order.

    A value of a JSON answer is as JSON has it. A row without an answer has None, and the reason in the error column.
    """
    for line, result in zip(iter_lines(requests), results, strict=True):
        row = {} if line.data is None else _row.decode(line.data).metadata.row
        yield row | added(decode_result(result), columns, check)


def added(result: NativeResult, columns: AnswerColumns, check: AnswerCheck = lambda answer: None) -> dict[str, Any]:
    """The values of the columns that a result adds to its row. `check`: says why an answer is not valid, else None."""
    if result.error is not None or result.message is None:
        reason = result.error.message if result.error is not None else result.status
        return dict.fromkeys(columns.added) | {columns.error: reason}
    text = "".join(block.text for block in result.message.content)
    found = _json(text) if columns.has_json else text
    wrong = check(found)
    if wrong is not None:
        return dict.fromkeys(columns.added) | {columns.error: wrong}
    if not isinstance(found, dict) or not (columns.fields or columns.is_choice):
        return dict.fromkeys(columns.added) | {columns.into: found}
    return {name: found.get(name) for name in columns.added}


def _json(text: str) -> Any:
    """Text that is not JSON, as of an engine that does not follow schemas, stays text."""
    try:
        return msgspec.json.decode(text)
    except UNREADABLE:
        return text
