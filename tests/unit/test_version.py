"""One version: of the package, of the Node client and the images that are released with it, and of the changelog."""

import json
import re
from pathlib import Path

import batchfile

ROOT = Path(__file__).parents[2]


def test_the_changelog_begins_with_the_version() -> None:
    found = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert found is not None
    assert found[1] == batchfile.__version__


def test_the_node_client_has_the_same_version() -> None:
    package, lock = (json.loads((ROOT / "ts" / name).read_text()) for name in ("package.json", "package-lock.json"))
    versions = [package["version"], lock["version"], lock["packages"][""]["version"]]
    assert versions == [batchfile.__version__] * 3


def test_manifests_and_pages_name_images_of_the_same_version() -> None:
    pages = [path for folder in ("containers", "deploy") for path in (ROOT / folder).rglob("*") if path.is_file()]
    texts = [path.read_text() for path in pages if path.suffix in {"", ".md", ".yaml"}]
    found = re.compile(r"(?:batchfile-\w+:|newTag: \"|BATCHFILE_VERSION=)(\d[\w.]*)")
    versions = [version for text in texts for version in found.findall(text)]
    assert versions
    assert set(versions) == {batchfile.__version__.rpartition(".")[0]}
