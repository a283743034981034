"""A repository with Mistral's own files beside those of transformers, as Mistral-7B-Instruct-v0.3 is, on real vLLM."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from batchfile.settings_tables import Pool
from batchfile.types import Completion, Message, Request, Sampling
from runners.options import factory_of

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

ROOT = Path(__file__).parents[2]


@pytest.fixture
def both_layouts(model_dir: Path, tmp_path: Path) -> Path:
    """The tiny model, its weights named by an index, and files of Mistral's that no engine could start from."""
    from safetensors import safe_open

    made = subprocess.run([sys.executable, "deploy/tiny_llama.py"], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    folder = tmp_path / "both"
    folder.mkdir()
    for file in Path(made.stdout.strip()).iterdir():
        (folder / file.name).symlink_to(file)
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        index = {"weight_map": dict.fromkeys(weights.keys(), "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "consolidated.safetensors").symlink_to(folder / "model.safetensors")
    (folder / "tokenizer.model.v3").write_bytes(b"")
    (folder / "params.json").write_text(json.dumps({"dim": 1}))
    return folder


def test_a_repository_with_both_layouts_is_loaded_as_transformers_has_it(both_layouts: Path) -> None:
    pool = Pool(model=str(both_layouts), max_model_len=256, engine_args={"max_num_seqs": 3})
    engine = factory_of(pool, "vllm")()
    try:
        assert engine.info.num_slots == 3, "the pool's own arguments reach vLLM"
        sampling = Sampling(max_tokens=4, temperature=0.0, ignore_eos=True)
        request = Request(custom_id="r", messages=(Message("user", "Hello"),), sampling=sampling)
        engine.add(0, engine.prepare(request))
        finished = []
        while not finished:
            finished = engine.step()
    finally:
        engine.close()
    [only] = finished
    assert isinstance(only.outcome, Completion)
    assert only.outcome.usage.output_tokens == 4
