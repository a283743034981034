"""Which files of a repository are downloaded."""

from fnmatch import fnmatch

import pytest

from runners.download_models import not_wanted

WEIGHTS = ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin"]
MISTRAL = ["params.json", "tekken.json", "consolidated.safetensors", "consolidated.safetensors.index.json"]
TRANSFORMERS = ["config.json", "tokenizer_config.json", "tokenizer.json"]


@pytest.mark.parametrize(
    ("files", "ignored"),
    [
        ([*TRANSFORMERS, *WEIGHTS], {"pytorch_model.bin"}),
        ([*TRANSFORMERS, *WEIGHTS, *MISTRAL], {"pytorch_model.bin", *MISTRAL[2:]}),
        (MISTRAL, set[str]()),
        (["config.json", *WEIGHTS, *MISTRAL], set(WEIGHTS)),  # without a chat template, vLLM loads Mistral's files
    ],
    ids=["transformers", "both", "Mistral", "both but for the tokenizer"],
)
def test_weights_are_downloaded_once_as_vllm_loads_them(files: list[str], ignored: set[str]) -> None:
    patterns = not_wanted(files)
    assert {name for name in files if any(fnmatch(name, pattern) for pattern in patterns)} == ignored
