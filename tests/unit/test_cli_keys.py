"""`batchfile keys new`: what it prints is what the service reads and the client sends."""

import hashlib
import re

import pytest
from click.testing import CliRunner

from tests.helpers.cli import root
from tests.helpers.settings import load_settings


def made(*arguments: str) -> dict[str, str]:
    done = CliRunner().invoke(root, ["keys", "new", *arguments])
    assert done.exit_code == 0, done.output
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize("dialect", [None, "stage", "anthropic"])
def test_the_service_knows_the_key_by_its_line(dialect: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = made("acme", *(["--dialect", dialect] if dialect else []))
    monkeypatch.setenv("BATCHFILE_API_KEYS", lines["BATCHFILE_API_KEYS"])
    (known,) = load_settings().api_keys
    key = lines["LOCAL_BATCH_API_KEY"]
    assert re.fullmatch(r"bf_[A-Za-z0-9_-]{43}", key)
    assert (known.tenant, known.dialect) == ("acme", dialect)
    assert known.sha256 == hashlib.sha256(key.encode()).hexdigest()
    assert key not in lines["BATCHFILE_API_KEYS"]


def test_every_key_is_another() -> None:
    assert len({made("acme")["LOCAL_BATCH_API_KEY"] for _ in range(5)}) == 5


@pytest.mark.parametrize("tenant", ["", "Acme", "a/b", "..", "a:b", "x" * 64])
def test_a_tenant_that_can_not_stand_in_a_store_key_is_refused(tenant: str) -> None:
    done = CliRunner().invoke(root, ["keys", "new", tenant])
    assert done.exit_code == 2
    assert "is not a valid tenant name" in done.output
