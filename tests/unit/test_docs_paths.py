"""What docs and comments name exists: files, links, modules. docs/architecture.md names every product folder.

And the form of the pages that grow: decisions and changelog.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/architecture.md"
PRODUCT = ("batchfile", "api", "runners", "deploy")
DOCS = [
    path
    for pattern in ("*.md", "docs/*.md", "api/**/*.md", "runners/**/*.md", "deploy/**/*.md", "containers/**/*.md")
    for path in ROOT.glob(pattern)
] + [ROOT / "tests/golden/README.md", ROOT / "ts/README.md"]
CODE = [path for folder in (*PRODUCT, "containers", "docs") for path in (ROOT / folder).rglob("*.py")]

LINK = re.compile(r"\[[^][]*\]\(([^)\s]+)\)")
FILE = re.compile(r"(?<![\w:./*{}-])[\w./-]*\w\.py\b")
MODULE = re.compile(r"-m ((?:batchfile|api|runners|tests|docs)(?:\.\w+)*)")
QUOTED_PATH = re.compile(r"`((?:batchfile|api|runners|deploy|containers|tests|docs)/[\w./-]*)`")
NAME_IN_FILE = re.compile(r"`(\w+)` in `([\w./]+\.py)`")
NOT_OURS = {"multiprocessing/resource_tracker.py"}


def _links(doc: Path) -> Iterator[Path]:
    for target in LINK.findall(doc.read_text()):
        if not re.match(r"[a-z]+:|#", target):
            yield doc.parent / target.partition("#")[0]


def _anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", LINK.sub("", text).lower()).replace(" ", "-") for text in headings}


def _missing_files(path: Path) -> list[str]:
    """Names of files and folders, relative to the file's own folder, to the root or to `batchfile/`."""
    text = LINK.sub("", path.read_text())
    bases = (path.parent, ROOT, ROOT / "batchfile")
    names = {*FILE.findall(text), *QUOTED_PATH.findall(text)} - NOT_OURS
    return sorted(name for name in names if not any((base / name).exists() for base in bases))


def _missing_modules(path: Path) -> list[str]:
    """Modules that are started with `python -m`; the wheel has `api` and `runners` within `batchfile`."""
    found = (re.sub(r"^batchfile\.(?=api|runners)", "", name) for name in MODULE.findall(path.read_text()))
    names = {name.replace(".", "/") for name in found}
    return sorted(n for n in names if not (ROOT / f"{n}.py").is_file() and not (ROOT / n / "__main__.py").is_file())


def _named_on_page() -> set[Path]:
    text = PAGE.read_text()
    return {(ROOT / name).resolve() for name in QUOTED_PATH.findall(text)} | {link.resolve() for link in _links(PAGE)}


@pytest.mark.parametrize("doc", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_page_links_to_exists(doc: Path) -> None:
    assert [str(target) for target in _links(doc) if not target.exists()] == []


@pytest.mark.parametrize("doc", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_heading_that_a_page_links_to_exists(doc: Path) -> None:
    targets = [target.partition("#") for target in LINK.findall(doc.read_text()) if re.match(r"[^:]*#", target)]
    pages = [(doc.parent / name if name else doc, anchor) for name, _, anchor in targets]
    assert [(str(page), anchor) for page, anchor in pages if anchor not in _anchors(page)] == []


@pytest.mark.parametrize("path", [*DOCS, *CODE], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_that_is_named_exists(path: Path) -> None:
    if path.name == "CHANGELOG.md":
        pytest.skip("it tells of the past")
    assert _missing_files(path) + _missing_modules(path) == []


def test_a_name_is_in_the_file_that_the_architecture_page_says() -> None:
    found = NAME_IN_FILE.findall(PAGE.read_text())
    assert found
    assert [pair for pair in found if not re.search(rf"\b{pair[0]}\b", (ROOT / pair[1]).read_text())] == []


def test_the_architecture_page_names_every_folder_of_product_code() -> None:
    folders = {path.parent for path in CODE if path.relative_to(ROOT).parts[0] in PRODUCT}
    assert sorted(str(folder.relative_to(ROOT)) for folder in folders - _named_on_page()) == []


def test_the_architecture_page_is_short() -> None:
    assert len(PAGE.read_text().splitlines()) < 120


def test_decisions_are_numbered_in_order() -> None:
    found = re.findall(r"^\n## (\d+)\. [A-Z]", (ROOT / "DECISIONS.md").read_text(), re.MULTILINE)
    headings = re.findall(r"^## ", (ROOT / "DECISIONS.md").read_text(), re.MULTILINE)
    assert [int(number) for number in found] == list(range(1, len(headings) + 1))


def test_an_entry_of_the_changelog_is_one_line_in_a_known_group() -> None:
    _, *versions = re.split(r"^## .*\n", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    groups = ["Added", "Changed", "Fixed", "Removed"]
    for text in versions:
        found = re.findall(r"^### (.*)", text, re.MULTILINE)
        assert found == [group for group in groups if group in found]
        assert [row for row in text.splitlines() if row and not row.startswith(("- ", "### "))] == []
