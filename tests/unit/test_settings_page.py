"""docs/settings.md: its tables are current, its examples are valid, and no setting or variable is missing."""

import re
from pathlib import Path
from typing import Any

import pytest

from docs.pages.settings import with_tables
from tests.helpers.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/settings.md"
TEXT = PAGE.read_text()
EXAMPLES = re.findall(r"```toml\n(.*?)```", TEXT, re.S)
# Only tests set these.
OF_TESTS = {"BATCHFILE_CRASH_AT"}


def test_the_tables_are_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHFILE_LIMITS__GRACE_S", "7")  # has no influence
    assert with_tables(TEXT) == TEXT, "run: python -m docs.pages"


def test_each_setting_is_on_the_page_once() -> None:
    names = [name for block in re.findall(r"<!-- settings: ([\w ]+) -->", TEXT) for name in block.split()]
    assert sorted(names) == sorted(Settings.model_fields)


def test_each_setting_has_a_description() -> None:
    schema = Settings.model_json_schema()
    tables: dict[str, dict[str, Any]] = {"": schema} | {k: v for k, v in schema["$defs"].items() if "properties" in v}
    for name, table in tables.items():
        assert table["description"], name
        for key, field in table["properties"].items():  # a table of settings is described once, by its class
            assert "$ref" in field or field.get("description", "").endswith("."), f"{name}.{key}"


@pytest.mark.parametrize("example", EXAMPLES)
def test_each_example_is_valid(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas/email.json").write_text('{"type": "object"}')
    (tmp_path / "batchfile.toml").write_text(example)
    monkeypatch.chdir(tmp_path)
    load_settings()


def test_the_page_names_each_variable_that_the_product_reads() -> None:
    code = [path for folder in ("batchfile", "api", "runners") for path in (ROOT / folder).rglob("*.py")]
    found = {name for path in code for name in re.findall(r'"(BATCHFILE_[A-Z_]*[A-Z])"', path.read_text())}
    assert found > {"BATCHFILE_CONFIG", "BATCHFILE_URL"}
    assert sorted(name for name in found - OF_TESTS if f"`{name}`" not in TEXT) == []
