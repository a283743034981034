"""The examples of docs/python.md and the notebook run, and say what the page shows."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

import batchfile
from batchfile.testing import EchoEngine
from tests.service.remote_kit import ROOT

PAGE = (ROOT / "docs" / "python.md").read_text()
EXAMPLES = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)
SERVICE = "https://batch.example"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHFILE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def service(api: Any) -> Iterator[str]:
    """A service whose pool has a runner for as long as the test lasts."""
    options = batchfile.RunnerOptions(runner_id="docs", pool="mistral")
    runner = batchfile.Runner(batchfile.Ledger(store=batchfile.open_store(api.store)), EchoEngine, options)
    thread = threading.Thread(target=runner.run)
    thread.start()
    yield api.url
    runner.stop()
    thread.join()


def said(code: str, namespace: dict[str, Any]) -> str:
    out = StringIO()
    with redirect_stdout(out):
        exec(compile(code, "example", "exec"), namespace)
    return out.getvalue()


def test_every_example_of_the_page_says_what_the_page_shows(
    service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "example"}
    examples = EXAMPLES.findall(PAGE)
    assert len(examples) == PAGE.count("```python")
    for code, expected in examples:
        assert said(code.replace(SERVICE, service), namespace) == expected, code


def test_the_page_has_every_public_name() -> None:
    rows = PAGE.partition("## Every name")[2].splitlines()
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row.partition(" | ")[0])} == set(batchfile.__all__)


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells in one namespace, as in a kernel: what a kernel adds needs packages that no other test does."""
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((ROOT / "examples" / "reviews.ipynb").read_bytes())
    namespace: dict[str, Any] = {"__name__": "__main__"}
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    text = "".join(said(cell, namespace) for cell in cells)
    assert text.startswith("3 of 3 succeeded")
    for cell in cells:
        said(cell, namespace)  # again, as after an interrupt
    assert not any(cell.get("outputs") for cell in notebook["cells"])
