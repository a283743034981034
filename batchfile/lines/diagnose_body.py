"""Turns pydantic errors about `params` or `body` into messages with a place. Runs for invalid lines only."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from batchfile.lines.diagnostics import Diagnostic, Path, shown
from batchfile.lines.formats import native, openai_responses
from batchfile.lines.formats.bodies import FORMATS
from batchfile.lines.formats.native import (
    OutputConfig,
    Thinking,
    ToolChoice,
    ToolDefinition,
    ToolResultBlock,
    ToolUseBlock,
)
from batchfile.lines.formats.openai_chat import Body, Function
from batchfile.lines.formats.openai_shared import ResponseFormat
from batchfile.lines.formats.options import StructuredOutputs
from batchfile.lines.formats.shared import TextBlock, UnsupportedKey, rules_of
from batchfile.lines.json_scan import find_fault, longest_number, nesting
from batchfile.lines.key_advice import UNKNOWN, Advice, advice, typo_of

_MISSING: Any = object()
_FIELDS = frozenset(native.Params.model_fields).union(*(form.body.model_fields for form in FORMATS.values()))
_SCHEMA_FORM = '{"type": "json_schema", "json_schema": {"name": "...", "schema": {...}}}'
_IN_JSON_SCHEMA = {"name", "description", "strict", "schema"}
# Allowed in the content of a turn in `params` and in `body`; everywhere else only text is.
_BLOCKS = {"text", "tool_use", "tool_result", "thinking", "redacted_thinking", "image", "document"}
_PARTS = {"text", "image_url", "input_audio", "audio_url", "file", "input_text", "input_image", "input_file", "refusal"}
_RESPONSE_PARTS = {"input_text", "output_text", "text", "refusal", "input_image", "input_file", "input_audio"}
_ITEMS = {"message", "function_call", "function_call_output", "reasoning"}
_ADVISED_MAX = 100  # problems of a line before unknown keys, of which there may be thousands, get no advice
_DEPTH_SAFE = 100  # nested containers, and digits of a number, that pydantic always reads
_DIGITS_SAFE = 1000
_KINDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a string",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "bool_type": "true or false",
    "none_required": "null",
}


def from_pydantic(
    error: ValidationError, root: str, model: type[BaseModel], data: Any, carried: bytes
) -> list[Diagnostic]:
    """`data` is what was validated, and `carried` its JSON; `root` is the key that contains it."""
    diagnostics: dict[Path, Diagnostic] = {}
    of_types = set[Path]()
    for detail in error.errors(include_url=False):
        if detail["type"] == "json_invalid":
            return [_whole(carried, root)]
        path, values = _walk(detail, data)
        is_of_branch = path[-1:] != detail["loc"][-1:]  # its last step is pydantic's name for a member of a union
        if detail["type"] == "string_type" and isinstance(detail["input"], list) and is_of_branch:
            continue  # a list is allowed as well as a string: the problem is inside the list
        if detail["type"] == "extra_forbidden" and len(path) == 1 and len(diagnostics) >= _ADVISED_MAX:
            diagnostic = Diagnostic((root, *path), *UNKNOWN, at_key=True)
        else:
            diagnostic = _finding(detail, path, values, root, model, data)
        is_type = detail["type"] in _KINDS
        if diagnostic.path not in diagnostics or (diagnostic.path in of_types and not is_type):
            # The type is that of another member of a union, if the value has the type of this one.
            diagnostics[diagnostic.path] = diagnostic
            (of_types.add if is_type else of_types.discard)(diagnostic.path)
    return list(diagnostics.values())


def unsupported(given: Mapping[str, Any], table: Mapping[str, UnsupportedKey], root: str) -> list[Diagnostic]:
    """A problem for each key that asks for something unsupported."""
    return [
        Diagnostic((root, key), refused.message, refused.fix)
        for key, refused in table.items()
        if key in given and given[key] not in refused.harmless
    ]


def _finding(
    detail: ErrorDetails, path: Path, values: list[Any], root: str, model: type[BaseModel], data: Any
) -> Diagnostic:
    kind, context = detail["type"], detail.get("ctx", {})
    if model is openai_responses.Body:
        unknown = _item_or_part(path, values, root)
        if unknown is not None:
            return unknown
    else:
        block = _block(path, values, _PARTS if model is Body else _BLOCKS)
        if block is not None:
            return Diagnostic((root, *block), *_not_text(values[len(block) - 1]))
    place, value = (root, *path), values[-1] if values else data
    if kind == "extra_forbidden":
        return _unknown(path, root, model, data)
    if kind == "none_required" and path[-1] == "function_call":
        return Diagnostic(place, "is deprecated and not supported; use tool_calls", "Use tool_calls.")
    if kind == "union_tag_not_found":
        return Diagnostic((*place, "type"), "is missing", "Add it.")
    plain = {
        "missing": ("is missing", "Add it."),
        "value_error": (str(context.get("error", "")), ""),
        "too_short": ("must not be empty", "Remove it or give it a value."),
        "string_too_short": ("must not be empty", "Remove it or give it a value."),
    }
    wrong = (f"must be {_expected(kind, context, path)}, got {shown(value)}", _fix(kind, value))
    return Diagnostic(place, *plain.get(kind, wrong))


def _whole(carried: bytes, root: str) -> Diagnostic:
    """Why pydantic cannot read it as JSON."""
    fault = find_fault(carried)
    if fault is not None:
        return Diagnostic((root,), f"is not valid JSON: {fault}", fault.fix)
    if nesting(carried) > _DEPTH_SAFE:
        return Diagnostic((root,), "is nested too deeply", "Flatten the request.")
    if longest_number(carried) > _DIGITS_SAFE:
        return Diagnostic((root,), "a number has too many digits", "Write a shorter number.")
    return Diagnostic((root,), "cannot be read as JSON", "Write the line with a JSON library.")


def _walk(detail: ErrorDetails, data: Any) -> tuple[Path, list[Any]]:
    """The path of the error without pydantic's names of union members, and the value at each step."""
    path: list[str | int] = []
    values: list[Any] = []
    last = len(detail["loc"]) - 1
    for n, step in enumerate(detail["loc"]):
        found = _MISSING
        is_block = n > 0 and path[-2:-1] == ["content"] and path[-1] == detail["loc"][n - 1]
        if isinstance(data, dict) and n < last and is_block and step == data.get("type"):
            continue  # pydantic's name of the union member of this block
        if isinstance(data, dict):
            found = data.get(step, _MISSING)
        elif isinstance(data, list) and isinstance(step, int):
            found = data[step]
        if found is _MISSING and not (n == last and detail["type"] == "missing"):
            continue
        path.append(step)
        values.append(found)
        data = found
    return tuple(path), values


def _block(path: Path, values: list[Any], in_turns: set[str]) -> Path | None:
    """The path of the block of an unsupported type that contains the error, if there is one."""
    for n, (step, value) in enumerate(zip(path, values, strict=True)):
        if isinstance(step, int) and path[n - 1] in {"content", "system"} and isinstance(value, dict):
            served = in_turns if n == 3 else {"text", "image"} if "source" in path[:n] else {"text"}
            if isinstance(value.get("type"), str) and value["type"] not in served:
                return path[: n + 1]
    return None


def _item_or_part(path: Path, values: list[Any], root: str) -> Diagnostic | None:
    """Of a response: the problem of an item, or a part of one, whose type is not supported."""
    for n, value in enumerate(values):
        kind = value.get("type") if isinstance(value, dict) else None
        if path[0] != "input" or not isinstance(path[n], int) or not isinstance(kind, str):
            continue
        what, served = ("items", _ITEMS) if n == 1 else ("parts", _RESPONSE_PARTS)
        if kind not in served:
            known = ", ".join(sorted(served))
            message = f"{what} of type {shown(kind)} are not supported; use {known}"
            return Diagnostic((root, *path[: n + 1], "type"), message, "Change the type.")
    return None


def _not_text(block: dict[str, Any]) -> tuple[str, str]:
    return f"blocks of type {shown(block['type'])} are not supported; use a text block", "Use a text block."


def _unknown(path: Path, root: str, model: type[BaseModel], data: Mapping[str, Any]) -> Diagnostic:
    if path[0] == "response_format" and len(path) == 2 and path[1] in _IN_JSON_SCHEMA:
        hint = _moved(str(path[1]), data["response_format"])
    elif len(path) == 1:
        hint = advice(str(path[0]), _served(model), data, _FIELDS)
    else:
        typo = typo_of(str(path[-1]), _keys_at(path, model))
        hint = advice(str(path[-1]), () if typo is None else (typo,))
    return Diagnostic((root, *path), hint.message, hint.fix, at_key=True)


def _moved(key: str, response_format: Mapping[str, Any]) -> Advice:
    """Advice for a key of `json_schema` that was put next to `type`, whatever the type is."""
    if response_format.get("type") == "json_schema":
        return Advice("belongs inside response_format.json_schema", f"Move {key} there.")
    return Advice("is only allowed with the type json_schema", f"Write {_SCHEMA_FORM} as response_format.")


@cache
def _served(model: type[BaseModel]) -> tuple[str, ...]:
    """The keys of `params` or `body`, without those that are always rejected."""
    rejected = rules_of(model, UnsupportedKey)
    return tuple(key for key in model.model_fields if key not in rejected)


def _keys_at(path: Path, model: type[BaseModel]) -> list[str]:
    """The keys that are allowed there. The path shows whether it is a turn, a block or a tool."""
    place, parent = path[0], path[-2]
    if place in {"output_config", "output_format"}:
        return [*OutputConfig.model_fields] if path[:-1] == ("output_config",) else ["type", "schema"]
    if place == "response_format":
        return [*ResponseFormat.model_fields] if parent == place else ["name", "description", "strict", "schema"]
    if place in {"messages", "system"}:
        if place == "messages" and len(path) == 3:
            return ["role", "content", "tool_calls", "tool_call_id", "name"] if model is Body else ["role", "content"]
        return [*TextBlock.model_fields, *ToolUseBlock.model_fields, *ToolResultBlock.model_fields]
    if place in {"tools", "tool_choice"}:
        return [*ToolDefinition.model_fields, *Function.model_fields, *ToolChoice.model_fields, "function"]
    nested: dict[str, type[BaseModel]] = {"structured_outputs": StructuredOutputs, "thinking": Thinking}
    fields = nested[str(place)].model_fields if place in nested else {}
    return [field.alias or name for name, field in fields.items()]


def _expected(kind: str, context: Mapping[str, Any], path: Path) -> str:
    if path and path[-1] in {"content", "system"} and kind in {"string_type", "list_type"}:
        return "a string or a list of text blocks"
    if path and path[-1] == "stop" and kind in {"string_type", "list_type"}:
        return "a string or a list of strings"
    bounds = {
        "greater_than_equal": ("at least", "ge"),
        "greater_than": ("greater than", "gt"),
        "less_than_equal": ("at most", "le"),
        "less_than": ("less than", "lt"),
    }
    if kind in bounds:
        words, key = bounds[kind]
        return f"{words} {context[key]:g}" if isinstance(context[key], float) else f"{words} {context[key]}"
    if kind == "literal_error":
        return str(context["expected"]).replace("'", '"')
    return _KINDS.get(kind, "a valid value")


def _fix(kind: str, value: Any) -> str:
    if kind in {"int_type", "float_type"} and isinstance(value, str):
        return "Write the number without quotes."
    if value is None:
        return "Remove it or give a value."
    return "Change it or remove it."
