"""The model that the set-up recipe keeps on this machine."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def model_dir() -> Path:
    cache = Path(os.environ.get("BATCHFILE_CACHE") or "~/.cache/batchfile").expanduser()
    found = cache / "models" / "SmolLM2-135M-Instruct"
    if not (found / "config.json").is_file():
        pytest.skip("the model is not on this machine: run `just setup`")
    return found
