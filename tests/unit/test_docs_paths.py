"""docs/architecture.md names every folder of product code, and nothing that does not exist."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/architecture.md"
PRODUCT = ("batchfile", "api", "runners", "deploy")
CODE = [path for folder in PRODUCT for path in (ROOT / folder).rglob("*.py")]

LINK = re.compile(r"\[[^][]*\]\(([^)\s]+)\)")
QUOTED_PATH = re.compile(r"`((?:batchfile|api|runners|deploy|containers|tests|docs)/[\w./-]*)`")
NAME_IN_FILE = re.compile(r"`(\w+)` in `([\w./]+\.py)`")


def _links(doc: Path) -> Iterator[Path]:
    for target in LINK.findall(doc.read_text()):
        if not re.match(r"[a-z]+:|#", target):
            yield doc.parent / target.partition("#")[0]


def _named_on_page() -> set[Path]:
    text = PAGE.read_text()
    return {(ROOT / name).resolve() for name in QUOTED_PATH.findall(text)} | {link.resolve() for link in _links(PAGE)}


def test_the_architecture_page_names_only_what_exists() -> None:
    assert [str(path) for path in _named_on_page() if not path.exists()] == []


def test_a_name_is_in_the_file_that_the_architecture_page_says() -> None:
    found = NAME_IN_FILE.findall(PAGE.read_text())
    assert found
    assert [pair for pair in found if not re.search(rf"\b{pair[0]}\b", (ROOT / pair[1]).read_text())] == []


def test_the_architecture_page_names_every_folder_of_product_code() -> None:
    folders = {path.parent for path in CODE}
    assert sorted(str(folder.relative_to(ROOT)) for folder in folders - _named_on_page()) == []


def test_the_architecture_page_is_short() -> None:
    assert len(PAGE.read_text().splitlines()) < 120
