"""Nothing asks how a library words its exceptions, or looks at its private attributes.

A message of a library may be shown to a person as it is. It may not be compared, searched, cut or matched.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("batchfile", "api", "runners", "deploy") for path in (ROOT / folder).rglob("*.py"))
ASKING = {"startswith", "endswith", "removeprefix", "removesuffix", "find", "index", "count", "partition", "rpartition"}
MATCHING = {"match", "search", "fullmatch", "findall", "finditer", "sub"}
# Attributes of exceptions that hold words, and no value that their documentation defines.
WORDS = {"msg", "args", "message", "errmsg", "error_msg"}
DOCUMENTED = {"_exit", "_replace"}  # of os, of named tuples
# Not the words of a library.
KNOWN = {
    ("api/create.py", "str(error).removeprefix('metadata.')"): "InvalidRequest, ours",
    ("batchfile/engine/http/answer.py", "error.args[0]"): "KeyError's key, documented",
    ("batchfile/media/loader.py", "str(error).startswith(place)"): "InvalidRequest, ours",
    ("deploy/runpod/resources.py", "error.args[0]"): "KeyError's key, documented",
}


def caught(tree: ast.AST) -> set[str]:
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.name} | {"error"}


def is_message(node: ast.expr, names: set[str]) -> bool:
    """`str(error)`, `repr(error)` or `error.msg`."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"str", "repr"} and node.args:
        return isinstance(node.args[0], ast.Name) and node.args[0].id in names
    return (
        isinstance(node, ast.Attribute)
        and node.attr in WORDS
        and isinstance(node.value, ast.Name)
        and node.value.id in names
    )


def questions(tree: ast.AST) -> Iterator[str]:
    """Every expression that asks for the words of an exception, and not only shows them."""
    names = caught(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            asked = any(is_message(one, names) for one in [node.left, *node.comparators])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            asked = (node.func.attr in ASKING and is_message(node.func.value, names)) or (
                node.func.attr in MATCHING and any(is_message(one, names) for one in node.args)
            )
        elif isinstance(node, ast.Subscript):
            asked = is_message(node.value, names)
        else:
            asked = False
        if asked:
            yield ast.unparse(node)


def privates(tree: ast.AST) -> Iterator[str]:
    """Attributes with one leading underscore of what is neither `self`, `cls` nor of a class in the same file."""
    own = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_self(node.value)}
    own |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    own |= {
        node.target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            if not is_self(node.value) and node.attr not in own:
                yield ast.unparse(node)
        elif isinstance(node, ast.ImportFrom) and any(
            part.startswith("_") and part != "_typeshed"  # that is for type checkers alone
            for part in (node.module or "").split(".")
        ):
            yield ast.unparse(node)


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in {"self", "cls"}


OF_OUR_OWN = {"batchfile/testing/__init__.py"}  # it runs the parts of a Runner in turn


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_wording_and_no_private_attribute_of_a_library_is_asked_for(path: Path) -> None:
    tree, name = ast.parse(path.read_text()), str(path.relative_to(ROOT))
    found = [text for text in questions(tree) if (name, text) not in KNOWN]
    if name not in OF_OUR_OWN:
        found += [text for text in privates(tree) if text.partition(".")[2] not in DOCUMENTED]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "'x' in str(error)",
        "str(error) == 'x'",
        "AT.search(str(error))",
        "error.msg.startswith('Extra')",
        "str(error)[3:]",
        "error.args[0]",
        "engine._core",
        "from uvicorn._types import x",
    ],
)
def test_the_check_finds_each_of_these(code: str) -> None:
    tree = ast.parse(code)
    assert [*questions(tree), *privates(tree)]
