"""Which columns of a Parquet file are requests, and whether their types can be. Reads no row."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from batchfile.errors import InvalidFile
from batchfile.lines.chat import without_effect
from batchfile.lines.formats import native, openai_chat, openai_completions, openai_embeddings
from batchfile.lines.key_advice import NOT_SERVED, OTHERWISE, SAME, typo_of

INTEGERS = ("max_tokens", "top_k", "seed")
NUMBERS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
SAMPLING = (*INTEGERS, *NUMBERS, "stop_sequences", "model")
COLUMNS = ("custom_id", "messages", "system", "prompt", *SAMPLING)
_FORMATS = (native.Params, openai_chat.Body, openai_completions.Body, openai_embeddings.Body)
_OUTSIDE = frozenset({"params", "body", "metadata", "model_hint"})  # of a line, or of its metadata
# Keys of a request, or of other APIs, that would change its answer and that no column is read as. Those without an
# effect are left out, as any other column is.
REQUEST_KEYS = _OUTSIDE.union(
    *(model.model_fields.keys() - without_effect(model) for model in _FORMATS), SAME, OTHERWISE, NOT_SERVED
).difference(COLUMNS)


def wanted_columns(path: str, schema: Any) -> list[str]:
    """The columns to read. Whatever they hold has a form in JSON. Raises: InvalidFile."""
    names = list(schema.names)
    shown = ", ".join(names)[:300]
    if "custom_id" not in names:
        raise InvalidFile(f"{path}: has no column custom_id; there are {shown}")
    if "messages" in names and "prompt" in names:
        raise InvalidFile(f"{path}: has both columns messages and prompt; keep one of them")
    if "messages" not in names and "prompt" not in names:
        raise InvalidFile(f"{path}: needs a column messages or prompt; there are {shown}")
    for name in names:
        if name in REQUEST_KEYS and not _is_nothing(schema.field(schema.get_all_field_indices(name)[0]).type):
            raise InvalidFile(f"{path}: column {name}: {_unread(name, names)}")
        near = None if name in COLUMNS or name in REQUEST_KEYS else typo_of(name, COLUMNS)
        if near is not None and near not in names:
            raise InvalidFile(f"{path}: column {name}: did you mean {near}? Rename it, or drop it")
    wanted = [name for name in names if name in COLUMNS]
    for name, num in Counter(wanted).items():
        if num > 1:
            raise InvalidFile(f"{path}: has {num} columns {name}; keep one of them")
    for name in wanted:
        is_right, what = _RULES[name]
        kind = schema.field(name).type
        if not is_right(kind):
            raise InvalidFile(f"{path}: column {name} is {kind}; it must be {what}")
        for wrong in _without_json(kind, name):
            raise InvalidFile(f"{path}: column {wrong}")
    return wanted


def _bare(kind: Any) -> Any:
    """The type of the values, whatever they are packed in."""
    import pyarrow as pa
    import pyarrow.types as is_

    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif is_.is_dictionary(kind):
            kind = kind.value_type
        else:
            return kind


def _unread(name: str, names: Sequence[str]) -> str:
    ours = next((ours for ours in SAME.get(name, ()) if ours in COLUMNS and ours not in names), None)
    if ours is not None:
        return f"is not read; rename it to {ours}, or to another name if it is data"
    told = next((told for known, told in OTHERWISE.get(name, ()) if known in COLUMNS), None)
    if told is not None:
        return f"{told.message}, or rename it if it is data"
    return f"{name} is not read from Parquet; drop it, write the requests as JSONL, or rename it if it is data"


def _is_nothing(kind: Any) -> bool:
    import pyarrow.types as is_

    return bool(is_.is_null(_bare(kind)))


def _is_text(kind: Any) -> bool:
    import pyarrow.types as is_

    kind = _bare(kind)
    return bool(is_.is_string(kind) or is_.is_large_string(kind) or is_.is_string_view(kind) or is_.is_null(kind))


def _is_number(kind: Any) -> bool:
    import pyarrow.types as is_

    kind = _bare(kind)
    return bool(is_.is_integer(kind) or is_.is_floating(kind) or is_.is_decimal(kind) or is_.is_null(kind))


def _is_id(kind: Any) -> bool:
    """Data frames make floats of whole numbers; what is none in a row fails alone."""
    return _is_text(kind) or _is_number(kind)


def _is_list(kind: Any) -> bool:
    import pyarrow.types as is_

    kinds = (is_.is_list, is_.is_large_list, is_.is_fixed_size_list, is_.is_list_view, is_.is_large_list_view)
    return any(is_kind(kind) for is_kind in kinds)


def _is_turns(kind: Any) -> bool:
    import pyarrow.types as is_

    kind = _bare(kind)
    return _is_text(kind) or (_is_list(kind) and bool(is_.is_struct(_bare(kind.value_type))))


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
    """What in a type has no form in JSON, in words. Times have none that every reader agrees on."""
    import pyarrow.types as is_

    kind = _bare(kind)
    if is_.is_struct(kind):
        fields = [kind.field(number) for number in range(kind.num_fields)]
        for name, num in Counter(field.name for field in fields).items():
            if num > 1:
                yield f"{place} has {num} fields {name}; keep one of them"
        for field in fields:
            yield from _without_json(field.type, f"{place}.{field.name}")
    elif _is_list(kind):
        yield from _without_json(kind.value_type, place)
    elif not (_is_text(kind) or _is_number(kind) or is_.is_boolean(kind)):
        yield f"{place} is {kind}; cast it to text, or drop it"
