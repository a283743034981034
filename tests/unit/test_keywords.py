"""Callers in Python read keywords where the command has flags."""

import ast
import re
from pathlib import Path

import pytest

import batchfile
from batchfile.errors import InvalidFile, OutputTaken, SettingsError
from batchfile.local.keywords import in_python, worded_for_python

LIBRARY = Path(batchfile.__file__).parent
# What `run` and `map` call. `_option` has the help of the command; the runner of a test double is started by hand.
FOLDERS = ("engine", "lines", "local", "media", "plan", "rows", "runner")
HELP = ("options.py", "faulty_echo.py")


@pytest.mark.parametrize(
    ("text", "worded"),
    [
        ("add --restart to replace it", "add restart=True to replace it"),
        ("nothing ran (--strict). See", "nothing ran (strict=True). See"),
        ("--limit was 20 and is 200 now", "limit was 20 and is 200 now"),
        ("add --sample N, or --engine echo", 'add sample=N, or engine="echo"'),
        ("--base-url is for --engine http, not for vllm", 'base_url is for engine="http", not for vllm'),
        ("add --restart", "add restart=True"),
        ("`batchfile run x --limit 3` and --limit", "`batchfile run x --limit 3` and limit"),
        ("my--limit.csv, --limit.csv and --unknown", "my--limit.csv, --limit.csv and --unknown"),
    ],
)
def test_flags_become_keywords_and_nothing_else_changes(text: str, worded: str) -> None:
    assert in_python(text) == worded


def test_errors_keep_their_class_and_their_notes_are_worded_too() -> None:
    error = OutputTaken("add --restart")
    error.add_note("--limit was 1")
    with pytest.raises(OutputTaken) as caught, worded_for_python():
        raise error
    assert (str(caught.value), caught.value.__notes__) == ("add restart=True", ["limit was 1"])


def test_run_and_map_name_their_own_keywords(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text('{"custom_id": "a", "params": {"messages": [{"role": "user", "content": "hi"}]}}\n')
    Path("out.jsonl").write_text("of another program\n")
    with pytest.raises(OutputTaken, match="or add restart=True to replace it"):
        batchfile.run("in.jsonl", "out.jsonl", engine="echo", progress=False)
    Path("full").mkdir()
    Path("full/notes.txt").write_text("of another program\n")
    with pytest.raises(OutputTaken, match="add restart=True to"):
        batchfile.run(["in.jsonl"], "full", engine="echo", progress=False)
    with pytest.raises(SettingsError, match='engine="http" needs base_url, such as'):
        batchfile.map([{"prompt": "hi"}], engine="http")
    Path("bad.jsonl").write_text(Path("in.jsonl").read_text() + '{"custom_id": "b"}\n')
    with pytest.raises(InvalidFile, match=r"nothing ran \(strict=True\)"):
        batchfile.run("bad.jsonl", "other.jsonl", engine="echo", strict=True, progress=False)


def _texts(path: Path) -> list[str]:
    """Of the constants and f-strings of a module, apart from docstrings."""
    tree = ast.parse(path.read_text())
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(str(part.value) if isinstance(part, ast.Constant) else " " for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside | docs:
            found.append(node.value)
    return found


@pytest.mark.slow
def test_every_flag_in_a_message_has_its_keyword() -> None:
    files = [path for folder in FOLDERS for path in (LIBRARY / folder).rglob("*.py") if path.name not in HELP]
    texts = [(path.name, text) for path in files for text in _texts(path) if re.search(r"(?<![\w-])--[a-z]", text)]
    assert len(texts) > 20
    left = [(name, in_python(text)) for name, text in texts if " --" in re.sub("`[^`]*`", "", in_python(f" {text}"))]
    assert not left
