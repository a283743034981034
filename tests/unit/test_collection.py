"""Every process collects the same tests: the workers of pytest-xdist compare their names, which hold parameters."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
# Without a seed, or with the time in it, as a gzip header has.
DIFFERENT_EACH_TIME = re.compile(
    r"(time|datetime|secrets|uuid)\..*"
    r"|random\.(?!Random\(.).*"
    r"|os\.(urandom|getpid)\(.*"
    r"|gzip\.compress\((?!.*mtime=).*"
)


def calls_at_import(node: ast.AST) -> Iterator[ast.Call]:
    """Of a module; of a function only its decorators and defaults."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call):
            yield child
        if isinstance(child, ast.FunctionDef):
            for part in (*child.decorator_list, child.args):
                yield from calls_at_import(ast.Module([ast.Expr(part)], []))
        elif not isinstance(child, ast.Lambda):
            yield from calls_at_import(child)


def drawn(text: str) -> list[str]:
    calls = [ast.unparse(call) for call in calls_at_import(ast.parse(text))]
    return [call for call in calls if DIFFERENT_EACH_TIME.fullmatch(call)]


@pytest.mark.parametrize("folder", sorted({path.parent.name for path in TESTS.glob("*/*.py")}))
def test_no_module_draws_or_takes_the_time_when_it_is_imported(folder: str) -> None:
    found = {path.name: drawn(path.read_text()) for path in (TESTS / folder).glob("*.py")}
    assert {name: calls for name, calls in found.items() if calls} == {}


def test_what_differs_each_time_is_found() -> None:
    mark = "@pytest.mark.parametrize('data', [{}])\ndef test(data): ...\n"
    for call in ("gzip.compress(b'x')", "time.time()", "os.urandom(8)", "uuid.uuid4()", "random.random()"):
        assert drawn(mark.format(call)) == [call]
    for same in ("gzip.compress(b'x', mtime=0)", "random.Random(1).random()", "lambda: time.time()"):
        assert drawn(mark.format(same)) == []
    assert drawn("def test(): time.time()") == []
