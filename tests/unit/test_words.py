"""The words of everything that a user or a developer reads: docs, messages, help, docstrings, comments."""

import io
import re
import subprocess
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.pages.glossary import SOURCE, glossary

ROOT = Path(__file__).parents[2]
AVOID: dict[str, str] = tomllib.loads(SOURCE.read_text())["avoid"]
TERMS: dict[str, str] = tomllib.loads(SOURCE.read_text())["terms"]
PAST = {"CHANGELOG.md", "DECISIONS.md"}
CODE = ("batchfile", "api", "runners", "deploy", "docs")


def _tracked(*patterns: str) -> list[Path]:
    found = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in found.stdout.split()]


PAGES = [path for path in _tracked("*.md") if path.name not in PAST and "tests" not in path.relative_to(ROOT).parts]
# Recipes, manifests, examples and the Node client.
OTHERS = _tracked("justfile", "pyproject.toml", "*.yaml", "*.sh", "*Dockerfile", "examples/*", "ts/*.ts", ".github/*")
SOURCES = [path for folder in CODE for path in _tracked(f"{folder}/**.py")]


def _prose(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of all that is prose: the page, or the strings and comments of Python."""
    text = path.read_text()
    if path.suffix != ".py":
        yield from enumerate(re.sub(r"`[^`\n]*`", "", text).splitlines(), 1)
        return
    kinds = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", -1)}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in kinds:
            for offset, line in enumerate(token.string.splitlines()):
                yield token.start[0] + offset, line


def _faults(path: Path) -> list[str]:
    found = []
    for number, line in _prose(path):
        for phrase, instead in AVOID.items():
            if match := re.search(phrase, line, re.I):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match[0]!r}; write: {instead}")
    return found


@pytest.mark.parametrize("path", [*PAGES, *OTHERS, *SOURCES], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_phrase_that_we_avoid_appears(path: Path) -> None:
    assert _faults(path) == []


def test_each_phrase_that_we_avoid_is_found() -> None:
    assert re.search(r"|".join(AVOID), "the lease lapses, whoever looks, and can not be mended")


def test_the_glossary_is_current() -> None:
    assert (ROOT / "docs/glossary.md").read_text() == glossary(), "run: python -m docs.pages"


def test_every_term_of_the_glossary_is_used() -> None:
    text = "\n".join(path.read_text().lower() for path in [*PAGES, *SOURCES] if path.name != "glossary.md")
    assert [term for term in TERMS if term.lower() not in text] == []
