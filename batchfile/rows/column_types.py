"""The types of the columns that answers add, by the JSON schema of the answers. Pure."""

from typing import Any

from batchfile.rows.frames import ColumnType
from batchfile.rows.prompt import AnswerColumns, RowPrompt

_TYPES: dict[str, ColumnType] = {
    "string": "string",
    "integer": "integer",
    "number": "number",
    "boolean": "boolean",
}
_DEPTH_MAX = 20  # of references


def column_types(prompt: RowPrompt, columns: AnswerColumns) -> dict[str, ColumnType]:
    """By name, in the order of the columns. Answers without a schema, choices and errors are text."""
    types: dict[str, ColumnType] = dict.fromkeys(columns.added, "string")
    schema = prompt.schema
    if schema is None:
        return types
    if not columns.fields:
        return types | {columns.into: _type_of(schema, schema)}
    return types | {name: _type_of(schema["properties"][name], schema) for name in columns.fields}


def _type_of(part: Any, schema: dict[str, Any], depth: int = 0) -> ColumnType:
    """Of one part of a schema. A null does not count: each column may lack values."""
    if not isinstance(part, dict) or depth > _DEPTH_MAX:
        return "any"
    if isinstance(part.get("$ref"), str):
        return _type_of(_target(part["$ref"], schema), schema, depth + 1)
    if "enum" in part or "const" in part:
        values = [*part.get("enum", ()), *([part["const"]] if "const" in part else ())]
        return "string" if all(isinstance(value, str | None) for value in values) else "any"
    options = part.get("anyOf") or part.get("oneOf")
    if options:
        found = {_type_of(one, schema, depth + 1) for one in options if one != {"type": "null"}}
        return found.pop() if len(found) == 1 else "any"
    named = part.get("type")
    names = {*(named if isinstance(named, list) else [named])} - {"null"}
    return _TYPES.get(str(names.pop()), "any") if len(names) == 1 else "any"


def _target(reference: str, schema: dict[str, Any]) -> Any:
    found: Any = schema
    for name in reference.removeprefix("#/").split("/"):
        found = found.get(name) if isinstance(found, dict) else None
    return found
