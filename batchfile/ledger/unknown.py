"""Finds what a stored document has and a type does not know. Pure."""

from collections.abc import Iterator

from msgspec import inspect


def unknown_paths(value: object, kind: inspect.Type, path: str) -> Iterator[str]:
    """Depth first: the paths of object keys for which `kind` has no field."""
    if isinstance(kind, inspect.UnionType):
        shape = inspect.DataclassType if isinstance(value, dict) else inspect.VarTupleType
        kind = next((one for one in kind.types if isinstance(one, shape)), kind)
    if isinstance(value, dict) and isinstance(kind, inspect.DataclassType | inspect.StructType):
        known = {one.encode_name: one.type for one in kind.fields}
        for name, inner in value.items():
            if name in known:
                yield from unknown_paths(inner, known[name], f"{path}{name}.")
            else:
                yield f"{path}{name}"
    elif isinstance(value, list) and isinstance(kind, inspect.VarTupleType):
        for inner in value:
            yield from unknown_paths(inner, kind.item_type, path)
    elif isinstance(value, dict) and isinstance(kind, inspect.DictType):
        for inner in value.values():
            yield from unknown_paths(inner, kind.value_type, path)
