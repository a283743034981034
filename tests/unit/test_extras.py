"""Each extra installs what its program imports, so that `batchfile[api]` alone is a whole service."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = {"api", "runners", "batchfile"}
ELSEWHERE = {"torch"}  # comes with vLLM, which is installed for the machine


def _names(requirements: list[str]) -> set[str]:
    return {_normal(re.match(r"[\w.-]+", one)[0]) for one in requirements}  # type: ignore[index]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _imports(folder: Path) -> Iterator[tuple[Path, str]]:
    """Those at the top of a module: what it needs to be loaded at all."""
    for path in folder.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                yield from ((path, alias.name.split(".")[0]) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                yield path, node.module.split(".")[0]


@pytest.mark.parametrize(("folder", "extras"), [("api", ["api"]), ("runners", ["fleet"])])
def test_an_extra_has_what_its_program_imports(folder: str, extras: list[str]) -> None:
    optional = PROJECT["optional-dependencies"]
    allowed = _names(PROJECT["dependencies"]).union(*(_names(optional[extra]) for extra in extras))
    distributions = importlib.metadata.packages_distributions()
    missing = set()
    for path, module in _imports(ROOT / folder):
        if module in OURS | ELSEWHERE or module in sys.stdlib_module_names:
            continue
        own = allowed | _names(optional.get(path.parent.name, []))  # runners/ray, runners/runpod
        if not own & {_normal(name) for name in distributions.get(module, [module])}:
            missing.add(f"{path.relative_to(ROOT)}: {module}")
    assert sorted(missing) == []
