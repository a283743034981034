"""The tables of docs/settings.md, made from the settings' descriptions. The text around them stays."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from batchfile.cli.config import as_words, in_force
from batchfile.settings import NESTED, PREFIX, Settings
from batchfile.settings_built_in import DEFAULT_STAGES

# From `<!-- settings: store run -->` to `<!-- end -->` a page has the tables of these settings.
_BLOCK = re.compile(r"(<!-- settings: ([\w ]+) -->\n).*?(<!-- end -->)", re.S)
_HEADINGS = "| key and variable | type | default | meaning |\n|---|---|---|---|\n"
# For the keys that users choose.
_NAMES = {"pools": "NAME", "webhooks": "TENANT", "media": "TENANT", "stages": "STAGE", "schemas": "STAGE"}
_TYPES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "`true` or `false`",
    "array": "list",
    "object": "table",
}
_BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most"}
_LONG_S = {24 * 3600: "day", 3600: "hour"}
_MIB = 1024 * 1024

Schema = Mapping[str, Any]


def with_tables(page: str) -> str:
    """The page with its tables updated, whatever the environment and a settings file say."""
    schema = Settings.model_json_schema()
    return _BLOCK.sub(lambda block: f"{block[1]}\n{_tables(schema, block[2].split())}\n{block[3]}", page)


def _tables(root: Schema, names: list[str]) -> str:
    """One table of the settings that are single values, then one of each setting that is a table, with a heading."""
    fields = {name: root["properties"][name] for name in names}
    groups = {name: group for name in names if (group := _group(root, fields[name])) is not None}
    rows = [row for name in names if name not in groups for row in _rows(root, name, fields[name])]
    found = [_HEADINGS + "".join(rows)] if rows else []
    for name, group in groups.items():
        path = f"{name}.{_NAMES[name]}" if name in _NAMES else name
        text = fields[name].get("description") or group["description"]
        found.append(f"### `[{path}]`\n\n{text}\n\n{_HEADINGS}{''.join(_rows_of(group, path))}")
    return "\n".join(found)


def _group(root: Schema, field: Schema) -> Schema | None:
    """The schema of a table of settings: the field's own, or that of each of its values."""
    values = field.get("additionalProperties")
    name = (values if isinstance(values, Mapping) else field).get("$ref", "").rpartition("/")[2]
    found: Schema | None = root["$defs"].get(name)
    return found


def _rows(root: Schema, name: str, field: Schema) -> Iterator[str]:
    if name in _NAMES:
        yield _row(f"{name}.{_NAMES[name]}", {**field["additionalProperties"], "description": field["description"]})
        return
    yield _row(name, field)
    items = _group(root, field.get("items", {}))
    if items is not None:
        yield from _rows_of(items, f"{name}[]")


def _rows_of(group: Schema, path: str) -> Iterator[str]:
    for name, field in group["properties"].items():
        yield _row(f"{path}.{name}", field, is_required=name in group.get("required", ()))


def _row(key: str, field: Schema, *, is_required: bool = False) -> str:
    variable = "" if "[" in key else f"<br>`{PREFIX}{key.upper().replace('.', NESTED)}`"
    default = "required" if is_required else _default(key, field)
    return f"| `{key}`{variable} | {_type(field)} | {default} | {field['description']} |\n"


def _type(field: Schema) -> str:
    kind = next((kind for kind in field.get("anyOf", ()) if kind.get("type") != "null"), field)
    if "enum" in kind:
        *others, last = (f"`{value}`" for value in kind["enum"])
        return f"{', '.join(others)} or {last}"
    bounds = [f"{words} {kind[bound]:g}" for bound, words in _BOUNDS.items() if bound in kind]
    if "minimum" in kind and "maximum" in kind:
        bounds = [f"{kind['minimum']:g} to {kind['maximum']:g}"]
    kinds = [one for one in field.get("anyOf", ()) if "type" in one and one["type"] != "null"] or [kind]
    return ", ".join([" or ".join(map(_kind, kinds)), *bounds])


def _kind(field: Schema) -> str:
    if field.get("format") == "path":
        return "path"
    name = _TYPES[field["type"]]
    return f"{name} of text" if field.get("items", {}).get("type") == "string" else name


def _default(key: str, field: Schema) -> str:
    if key.startswith("stages."):
        return ", ".join(f"`{stage}`: `{pool}`" for stage, pool in DEFAULT_STAGES.items())
    value = field.get("default")
    if value not in (None, {}, []):
        return f"`{json.dumps(value)}`{_in_units(key, value)}"
    found = in_force(Settings.model_construct(), key)
    if found is None:
        return "none"
    return re.sub(r"\b\d{4,}\b", lambda number: number[0] + _in_units(key, int(number[0])), as_words(found))


def _in_units(key: str, value: object) -> str:
    """` = 1 day` after seconds and ` = 256 MiB` after bytes; nothing where the number says enough."""
    if not isinstance(value, int):
        return ""
    if key.endswith("bytes_max"):
        return f" = {value // _MIB} MiB"
    for unit_s, unit in _LONG_S.items():
        if key.endswith("_s") and value % unit_s == 0:
            return f" = {value // unit_s} {unit}{'s' if value > unit_s else ''}"
    return ""
