"""Commands for batches elsewhere load no client of a store or a service before they know which."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NAMES = ("submit", "watch", "tail", "results", "ls", "status", "cancel", "rerun", "estimate")
HEAVY = {"aiohttp", "boto3", "botocore", "litestar", "pyarrow", "genai_prices", "transformers", "vllm"}


def test_their_help_loads_no_client() -> None:
    code = f"""
import sys
from click.testing import CliRunner
from batchfile.cli.group import root
for name in {NAMES}:
    done = CliRunner().invoke(root, [name, "--help"])
    assert done.exit_code == 0, done.output
print("LOADED", *{{name.split(".")[0] for name in sys.modules}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert set(done.stdout.rsplit("LOADED", 1)[1].split()) & HEAVY == set()


def test_a_look_over_http_loads_neither_the_ledger_nor_a_store() -> None:
    code = """
import sys
from click.testing import CliRunner
from batchfile.cli.group import root
CliRunner().invoke(root, ["ls", "--url", "http://127.0.0.1:9"])
print("LOADED", *sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(done.stdout.rsplit("LOADED", 1)[1].split())
    assert "aiohttp" in loaded
    assert loaded & {"boto3", "pydantic", "batchfile.lines", "batchfile.ledger.base", "batchfile.store"} == set()
