"""What services log: from which level on, and shards in one form."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from batchfile import logs

ROOT = Path(__file__).parents[2]
SHARD = re.compile(r".*\.name|f'\{[\w.]*pool\}/\{[\w.]*n\}'")


@pytest.fixture(autouse=True)
def _configured() -> Iterator[None]:
    kept = structlog.get_config()
    yield
    structlog.configure(**kept)


@pytest.mark.parametrize(
    ("level", "logged"), [("info", ["one", "two"]), ("warning", ["two"]), ("error", []), ("loud", ["one", "two"])]
)
def test_less_severe_events_are_left_out(
    level: str, logged: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(logs.LEVEL_VARIABLE, level)
    logs.configure(pool="p")
    log = structlog.get_logger()
    log.info("one")
    log.warning("two")
    assert re.findall(r'"event": "(\w+)"', capsys.readouterr().err) == logged


def test_the_settings_decide_once_they_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    log = structlog.get_logger()
    logs.set_level("error")
    log.warning("one")
    logs.set_level("debug")
    log.debug("two")
    assert re.findall(r'"event": "(\w+)"', capsys.readouterr().err) == ["two"]


def test_each_program_that_reads_settings_takes_its_level_from_them() -> None:
    for folder in ("api", "runners"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            if "load_settings(" in text:
                assert "logs.set_level(" in text, path


@pytest.mark.slow
def test_every_event_has_a_shard_in_one_form_and_with_its_batch() -> None:
    """`pool/n`, as messages, heartbeats and keys have it."""
    calls = [
        (path, node)
        for folder in ("batchfile", "api", "runners")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("log.")
    ]
    found = [(path, {one.arg: ast.unparse(one.value) for one in node.keywords}) for path, node in calls]
    with_shard = [(path, values) for path, values in found if "shard" in values]
    assert len(with_shard) >= 10
    for path, values in with_shard:
        assert SHARD.fullmatch(values["shard"]), (path, values)
        assert "batch_id" in values, (path, values)
