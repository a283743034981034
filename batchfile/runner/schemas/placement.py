"""Where an answer is checked against a schema: here, or in a process that may be killed. Pure.

What a check costs at most is bounded before it begins: each part of the schema, references followed, meets each part
of the answer at most once. That holds for the keywords below; whatever else a schema has may cost any time.
"""

from functools import lru_cache
from typing import Any, Literal

import msgspec

Place = Literal["here", "process"]

SCHEMA_BYTES_MAX = 64 * 1024
PARTS_MAX = 2_000  # of a schema, those behind a reference counted as often as it is followed
# Parts of the schema times bytes of the answer; about 10 ms at worst (100 alternatives for each of 500 numbers), and
# some 50 us for what is usual.
COST_MAX = 200_000

_OF_MANY = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_OF_NAMED = frozenset({"properties"})
_OF_ONE = frozenset({"additionalProperties", "items", "not"})
_OF_VALUES = frozenset({"const", "enum"})
_PLAIN = frozenset(
    {
        *("$comment", "$defs", "$schema", "default", "definitions", "deprecated", "description", "examples"),
        *("exclusiveMaximum", "exclusiveMinimum", "format", "maxItems", "maxLength", "maxProperties", "maximum"),
        *("minItems", "minLength", "minProperties", "minimum", "nullable", "readOnly", "required", "title", "type"),
        "writeOnly",
    }
)


def place_of(schema: bytes, num_chars: int) -> Place:
    """Of an answer of so many characters."""
    parts = num_parts(schema)
    return "here" if parts is not None and parts * max(1, num_chars) <= COST_MAX else "process"


@lru_cache(maxsize=256)
def num_parts(schema: bytes) -> int | None:
    """None where it is too large to count, or where counting says nothing about the time."""
    if len(schema) > SCHEMA_BYTES_MAX:
        return None
    try:
        return _Counter(msgspec.json.decode(schema)).count
    except (ValueError, RecursionError):
        return None


class _Unbounded(ValueError):
    """Too large, endless, or with a keyword of unknown cost."""


class _Counter:
    def __init__(self, root: Any) -> None:
        self._root = root
        self._of_reference: dict[str, int | None] = {}  # None: it is being counted
        self.count = self._parts(root)

    def _parts(self, schema: Any) -> int:
        """Raises: _Unbounded."""
        if isinstance(schema, bool):
            return 1
        if not isinstance(schema, dict):
            raise _Unbounded
        num = 1 + sum(self._of_keyword(name, value) for name, value in schema.items())
        if num > PARTS_MAX:
            raise _Unbounded
        return num

    def _of_keyword(self, name: str, value: Any) -> int:
        if name in _OF_VALUES:
            return _num_values(value)
        if name in _OF_NAMED and isinstance(value, dict):
            return sum(1 + self._parts(part) for part in value.values())
        if name in _OF_MANY and isinstance(value, list):
            return sum(map(self._parts, value))
        if name in _OF_ONE:
            return self._parts(value)
        if name == "$ref" and isinstance(value, str):
            return self._referred(value)
        if name not in _PLAIN or (name == "format" and value == "regex"):  # which compiles the answer
            raise _Unbounded
        return len(value) if name == "required" and isinstance(value, list) else 1

    def _referred(self, reference: str) -> int:
        known = self._of_reference.get(reference, 0)
        if known is None:  # it leads to itself
            raise _Unbounded
        if not known:
            self._of_reference[reference] = None
            known = self._of_reference[reference] = self._parts(_target(self._root, reference))
        return known


def _target(root: Any, reference: str) -> Any:
    """Raises: _Unbounded for what is no plain place in the same schema."""
    first, *names = reference.split("/")
    if first != "#" or "%" in reference or "~" in reference:
        raise _Unbounded
    for name in names:
        if not isinstance(root, dict) or name not in root:
            raise _Unbounded
        root = root[name]
    return root


def _num_values(value: Any) -> int:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(_num_values, inside))
