"""The fake RunPod beside the tests, and a store with work in it."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "deploy"))  # the recipe of set-up

from fake_runpod import FakeRunpod, Server
from runpod_cli import FOLDER, Deploy, deployer

from batchfile import Ledger
from batchfile.types import Defaults
from tests.helpers.ledger import batches, keys
from tests.helpers.plan import plan_input
from tests.helpers.settings import load_settings
from tests.helpers.store import DirectoryStore


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as one:
        yield one


@pytest.fixture
def runpod(server: Server) -> FakeRunpod:
    return server.fake


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A copy of the files of deploy/runpod, for a test to change."""
    return Path(shutil.copytree(FOLDER, tmp_path / "runpod"))


@pytest.fixture
def deploy(server: Server, files: Path) -> Deploy:
    return deployer(server, files)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(store=DirectoryStore(tmp_path / "store"))


@pytest.fixture
def create(ledger: Ledger) -> Callable[..., str]:
    """A batch for the pool mistral, of `num` good requests and one that no engine can serve."""

    def make(num: int, batch_id: str = "b") -> str:
        good = [{"custom_id": f"r{n}", "params": {"messages": [{"role": "user", "content": "hi"}]}} for n in range(num)]
        rows = [*good, {"custom_id": "bad", "params": {"messages": []}}]
        text = "\n".join(json.dumps({**row, "metadata": {"model_hint": "mistral"}}) for row in rows)
        key, routing = keys.input_key(batch_id, "n"), load_settings().routing()
        ledger.store.put(key, text.encode())
        planned = plan_input(ledger, batch_id, key, routing=routing)
        batches.create(ledger, batches.Draft(batch_id=batch_id, routing=routing, defaults=Defaults()), planned)
        return batch_id

    return make
