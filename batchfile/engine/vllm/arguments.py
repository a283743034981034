"""Checks further engine arguments against those of the installed vLLM, without importing it."""

import ast
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from batchfile.errors import SettingsError

# What is set in another way, since it is looked at before an engine starts.
_OF_DEVICES, _OF_MODEL = "which also decides on the devices", "which is also checked and stands in receipts"
_ELSEWHERE = {
    "tensor_parallel_size": ("tensor_parallel_size", _OF_DEVICES),
    "pipeline_parallel_size": ("pipeline_parallel_size", _OF_DEVICES),
    "data_parallel_size": ("replicas", _OF_DEVICES),
    "model": ("model", _OF_MODEL),
    "revision": ("revision", _OF_MODEL),
}


_KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "bool": (bool, "true or false"),
    "int": (int, "a whole number"),
    "float": ((int, float), "a number"),
}


def check_engine_arguments(arguments: Mapping[str, object]) -> None:
    """Raises: SettingsError for one that vLLM does not have, of another type, or with an option of its own."""
    known = known_arguments()
    for name, value in arguments.items():
        if name in _ELSEWHERE:
            setting, why = _ELSEWHERE[name]
            raise SettingsError(f"engine argument {name}: set {setting} instead, {why}")
        if known and name not in known:
            near = get_close_matches(name.replace("-", "_"), known, n=1)
            hint = f"did you mean {near[0]}?" if near else "see the engine arguments in vLLM's documentation"
            raise SettingsError(f"engine argument {name}: the installed vLLM has no such argument; {hint}")
        kind = known.get(name, "").removesuffix(" | None")
        if kind in _KINDS and value is not None:
            types, words = _KINDS[kind]
            if not isinstance(value, types) or (isinstance(value, bool) and kind != "bool"):
                raise SettingsError(f"engine argument {name}: {value!r} must be {words}")


@cache
def known_arguments() -> Mapping[str, str]:
    """The fields of vLLM's EngineArgs with their types, read from its source; empty if they are not where expected."""
    spec = find_spec("vllm")
    for folder in (spec and spec.submodule_search_locations) or ():
        try:
            tree = ast.parse((Path(folder) / "engine" / "arg_utils").with_suffix(".py").read_text())
        except (OSError, ValueError, SyntaxError):
            continue
        return {
            node.target.id: ast.unparse(node.annotation)
            for part in tree.body
            if isinstance(part, ast.ClassDef) and part.name == "EngineArgs"
            for node in part.body
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        }
    return {}
