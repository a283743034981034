"""Checks the names of further engine arguments against those of the installed vLLM, without importing it."""

import ast
from collections.abc import Iterable
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


def check_engine_arguments(names: Iterable[str]) -> None:
    """Raises: SettingsError for a name that vLLM does not have, or that has an option of its own."""
    for name in names:
        known = known_arguments()
        if name in _ELSEWHERE:
            setting, why = _ELSEWHERE[name]
            raise SettingsError(f"engine argument {name}: set {setting} instead, {why}")
        if known and name not in known:
            near = get_close_matches(name.replace("-", "_"), known, n=1)
            hint = f"did you mean {near[0]}?" if near else "see the engine arguments in vLLM's documentation"
            raise SettingsError(f"engine argument {name}: the installed vLLM has no such argument; {hint}")


@cache
def known_arguments() -> frozenset[str]:
    """The fields of vLLM's EngineArgs, read from its source; empty if it has none where they are expected."""
    spec = find_spec("vllm")
    for folder in (spec and spec.submodule_search_locations) or ():
        try:
            tree = ast.parse((Path(folder) / "engine" / "arg_utils").with_suffix(".py").read_text())
        except (OSError, ValueError, SyntaxError):
            continue
        fields = (
            node.target.id
            for part in tree.body
            if isinstance(part, ast.ClassDef) and part.name == "EngineArgs"
            for node in part.body
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        )
        return frozenset(fields)
    return frozenset()
