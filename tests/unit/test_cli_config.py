"""What `config show` and `doctor` say of settings that nobody has set."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.helpers.cli import root


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def shown(*options: str) -> str:
    done = CliRunner().invoke(root, ["config", "show", *options])
    assert done.exit_code == 0, done.output
    return done.output


def row(name: str, *options: str) -> str:
    (found,) = (line for line in shown(*options).splitlines() if line.startswith(name + " "))
    return " ".join(found.split()[1:])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("limits.lease_ttl_s", "(30 (directory), 90 (bucket)) default"),
        ("limits.checkpoint_s", "(1 (directory), 15 (bucket)) default"),
        ("limits.grace_s", "(30 (run, directory), 20 (otherwise)) default"),
        ("limits.completion_window_s", "(315360000 (run, directory), 86400 (otherwise)) default"),
        ("limits.retention_s", "(2592000 (run, directory), 86400 (otherwise)) default"),
        ("run.grace_s", "(30) default"),
        ("host", "(loopback without API keys, every interface with them) default"),
    ],
)
def test_a_limit_that_holds_is_shown_where_none_is_set(name: str, text: str) -> None:
    assert row(name) == text


def test_what_is_set_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHFILE_LIMITS__GRACE_S", "7")
    assert row("limits.grace_s") == "7.0 BATCHFILE_LIMITS__GRACE_S"
    assert row("run.grace_s") == "(7) default"


def test_every_limit_is_shown_with_what_holds() -> None:
    assert not [line for line in shown().splitlines() if line.startswith("limits.") and line.split()[1] == "-"]
    found = json.loads(shown("--json"))
    assert found["limits.lease_ttl_s"]["in_force"] == {
        "run, directory": 30,
        "run, bucket": 90,
        "service, directory": 30,
        "service, bucket": 90,
    }
    assert found["run.grace_s"] == {"value": None, "origin": "default", "in_force": 30}
    assert "in_force" not in found["port"]


def test_pools_are_shown_where_somebody_has_some(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "pools." not in shown()
    assert "the built-in pools and stages" in shown()
    assert "pools.mistral.model" in shown("--all")
    assert "pools.mistral.model" in shown("--json")
    assert "pools" not in CliRunner().invoke(root, ["doctor"]).output
    monkeypatch.setenv("BATCHFILE_POOLS__MISTRAL__MODEL", "org/m")
    assert "pools.mistral.model" in shown()
    assert "not shown" not in shown().lower()
    assert "pools llama-70b, mistral" in CliRunner().invoke(root, ["doctor"]).output
