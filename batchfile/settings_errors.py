"""What pydantic finds wrong with a setting, in our words, by the type of the error."""

from collections.abc import Mapping
from typing import Any

from batchfile.settings_tables import PUBLIC_URL, WEBHOOK_URL

_KINDS = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "path_type": "the path of a file",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "none_required": "nothing",
}
_PATTERNS = {
    WEBHOOK_URL: "an http:// or https:// URL without a user and without #, with a / before any ?",
    PUBLIC_URL: "an http:// or https:// URL without ?, #, { or }",
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("greater than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}


def expected(kind: str, context: Mapping[str, Any]) -> str:
    """`must be at least 1`, `is missing`; of a validator of ours, what it raised."""
    if kind == "value_error":
        return str(context["error"])
    if kind == "missing":
        return "is missing; add it"
    if kind == "literal_error":
        return f"must be {context['expected']}"
    if kind == "string_pattern_mismatch":
        return f"must be {_PATTERNS[context['pattern']]}"
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        bound = context[key]
        return f"must be {words} {bound:g}" if isinstance(bound, float) else f"must be {words} {bound}"
    return f"must be {_KINDS.get(kind, f'something else ({kind})')}"
