"""A repository with Mistral's own files beside those of transformers, as Mistral-7B-Instruct-v0.3 is, on real vLLM.

The last test stops the engine: to start one takes long.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchfile.errors import EngineDead
from batchfile.types import Completion, Message, Request, Sampling
from tests.helpers.fleet import factory_of
from tests.helpers.settings import PoolSettings
from tests.helpers.vllm import Stall, VllmEngine

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def both_layouts(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, its weights named by an index, and files of Mistral's that no engine could start from."""
    from safetensors import safe_open

    made = subprocess.run([sys.executable, "deploy/tiny_llama.py"], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    folder = tmp_path_factory.mktemp("both")
    for file in Path(made.stdout.strip()).iterdir():
        (folder / file.name).symlink_to(file)
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        index = {"weight_map": dict.fromkeys(weights.keys(), "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "consolidated.safetensors").symlink_to(folder / "model.safetensors")
    (folder / "tokenizer.model.v3").write_bytes(b"")
    (folder / "params.json").write_text(json.dumps({"dim": 1}))
    return folder


@pytest.fixture(scope="module")
def engine(both_layouts: Path) -> Iterator[VllmEngine]:
    pool = PoolSettings(model=str(both_layouts), max_model_len=256, engine_args={"max_num_seqs": 3})
    built = factory_of(pool, "vllm")()
    assert isinstance(built, VllmEngine)
    known = factory_of(pool, "vllm").identity()
    assert known is not None
    assert built.info.fingerprint == known.fingerprint, "with the dtype that is chosen for this CPU"
    yield built
    built.close()


def request(max_tokens: int) -> Request:
    sampling = Sampling(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    return Request(custom_id="r", messages=(Message("user", "Hello"),), sampling=sampling)


def test_a_repository_with_both_layouts_is_loaded_as_transformers_has_it(engine: VllmEngine) -> None:
    assert engine.info.num_slots == 3, "the pool's own arguments reach vLLM"
    engine.add(0, engine.prepare(request(max_tokens=4)))
    finished = []
    while not finished:
        finished = engine.step()
    [only] = finished
    assert isinstance(only.outcome, Completion)
    assert only.outcome.usage.output_tokens == 4


def test_an_engine_process_that_does_nothing_more_is_a_dead_engine(engine: VllmEngine) -> None:
    [process] = engine._processes
    engine._stall = Stall(5.0)
    engine._stall.is_warm = True
    os.kill(process.pid, signal.SIGSTOP)
    engine.add(1, engine.prepare(request(max_tokens=200)))

    def steps() -> None:
        while True:
            engine.step()

    with pytest.raises(EngineDead, match="no step and no token for 5 s"):
        steps()
    process.join(60)
    assert not process.is_alive()
