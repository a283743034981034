"""What `just serve` gives each pool of one machine."""

import subprocess
import sys
from pathlib import Path

import pytest
from service import pool_environ

from tests.helpers.engine import BIND, KV_CACHE
from tests.helpers.settings import PoolSettings

DEPLOY = Path(__file__).parents[2] / "deploy"
POOLS = {name: PoolSettings(model=f"no-such-model-{name}") for name in ("a", "b")}


def test_pools_get_little_kv_cache_each_unless_somebody_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KV_CACHE, raising=False)
    assert [environ[KV_CACHE] for environ in pool_environ(POOLS).values()] == ["1", "1"]
    monkeypatch.setenv(KV_CACHE, "4")
    assert not any(KV_CACHE in environ for environ in pool_environ(POOLS).values())


def test_nobodys_own_cores_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BIND, "0")
    assert not any(BIND in environ for environ in pool_environ(POOLS).values())


@pytest.mark.parametrize("script", ["local.py", "service.py"])
def test_each_script_starts(script: str) -> None:
    done = subprocess.run([sys.executable, DEPLOY / script, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout


def test_the_second_model_says_what_it_needs(tmp_path: Path) -> None:
    command = [sys.executable, DEPLOY / "tiny_llama.py"]
    done = subprocess.run(command, env={"BATCHFILE_CACHE": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "No model in" in done.stderr
    assert "run `just setup` once" in done.stderr
