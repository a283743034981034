"""What a model takes of a GPU's memory, by its config and the index of its weights."""

import json
from pathlib import Path
from typing import Any

import pytest

from batchfile.machine.model_memory import ModelMemory, memory_of, read_model_memory

LLAMA_70B = {
    "hidden_size": 8192,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "num_hidden_layers": 80,
    "vocab_size": 128256,
    "torch_dtype": "bfloat16",
    "max_position_embeddings": 131072,
}
LLAMA_70B_BYTES = 141_107_412_992
MISTRAL = {**LLAMA_70B, "hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32, "vocab_size": 32768}
MISTRAL_BYTES = 14_496_047_104
DEEPSEEK_V3 = {
    "hidden_size": 7168,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "num_hidden_layers": 61,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 129280,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048,
    "first_k_dense_replace": 3,
    "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "fp8"},
}


def memory(config: dict[str, Any], stored: int = MISTRAL_BYTES, **given: str) -> ModelMemory:
    found = memory_of(config, stored, **given)
    assert found is not None
    return found


def test_heads_that_share_keys_and_values() -> None:
    found = memory(LLAMA_70B, LLAMA_70B_BYTES)
    assert found.weight_bytes == LLAMA_70B_BYTES
    assert found.kv_bytes_per_token == 2 * 80 * 8 * 128 * 2
    assert (found.attention_heads, found.kv_heads, found.context_length) == (64, 8, 131072)
    assert found.parameters == LLAMA_70B_BYTES // 2 - 128256 * 8192


def test_each_gpu_keeps_its_part_of_the_cache() -> None:
    found = memory(LLAMA_70B, LLAMA_70B_BYTES)
    assert found.kv_bytes_on_each(1000, 2) == found.kv_bytes(1000) / 2
    assert found.kv_bytes_on_each(1000, 16) == found.kv_bytes(1000) / 8  # heads are not divided


def test_a_latent_is_kept_by_each_gpu() -> None:
    found = memory(DEEPSEEK_V3, 688_586_727_753)
    assert found.weight_bytes == 688_586_727_753
    assert found.kv_bytes_per_token == 61 * (512 + 64) * 2
    assert found.kv_bytes_on_each(1000, 8) == found.kv_bytes(1000)
    assert found.active_parameters < 0.1 * found.parameters


@pytest.mark.parametrize(
    ("quantization", "bytes_per_weight"),
    [("fp8", 1), ("int8_per_channel_weight_only", 1), ("mxfp8", 1), ("awq", 4.25 / 8), ("gptq", 4.25 / 8)],
)
def test_a_requested_quantization_leaves_the_embeddings(quantization: str, bytes_per_weight: float) -> None:
    embeddings = 2 * 32768 * 4096
    others = MISTRAL_BYTES // 2 - embeddings
    assert memory(MISTRAL, quantization=quantization).weight_bytes == embeddings * 2 + round(others * bytes_per_weight)


@pytest.mark.parametrize(
    ("quantized", "bits"),
    [
        ({"quant_method": "fp8"}, 8),
        ({"quant_method": "awq", "bits": 4}, 4.25),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 8}}}}, 8),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 4.25),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4.25),
    ],
)
def test_a_quantized_checkpoint_counts_as_it_is(quantized: dict[str, Any], bits: float) -> None:
    embeddings = 2 * 32768 * 4096
    stored = embeddings * 2 + round((MISTRAL_BYTES // 2 - embeddings) * bits / 8)
    found = memory({**MISTRAL, "quantization_config": quantized}, stored, quantization="fp8")
    assert found.weight_bytes == stored
    assert found.parameters == pytest.approx(MISTRAL_BYTES / 2 - embeddings / 2, rel=0.001)


def test_the_data_types() -> None:
    stored = {**MISTRAL, "torch_dtype": "float32"}
    assert memory(stored, 2 * MISTRAL_BYTES).weight_bytes == MISTRAL_BYTES  # as vLLM loads it
    assert memory(MISTRAL, dtype="float32").weight_bytes == 2 * MISTRAL_BYTES
    assert memory(MISTRAL, dtype="float32").kv_bytes_per_token == 2 * memory(MISTRAL).kv_bytes_per_token
    assert memory(MISTRAL, kv_cache_dtype="fp8_e4m3").kv_bytes_per_token * 2 == memory(MISTRAL).kv_bytes_per_token


def test_a_window_bounds_the_cache_of_a_request() -> None:
    found = memory({**MISTRAL, "sliding_window": 4096})
    assert found.kv_bytes(1000) == 1000 * found.kv_bytes_per_token
    assert found.kv_bytes(100_000) == 4096 * found.kv_bytes_per_token
    assert memory({**MISTRAL, "sliding_window": 4096, "use_sliding_window": False}).window == 0


def test_layers_of_several_kinds() -> None:
    kinds = ["sliding_attention"] * 20 + ["full_attention"] * 4 + ["linear_attention"] * 8
    found = memory({**MISTRAL, "sliding_window": 1024, "layer_types": kinds})
    of_a_layer = 2 * 8 * 128 * 2
    assert found.kv_bytes_per_token == 24 * of_a_layer
    assert found.kv_bytes(2048) == (4 * 2048 + 20 * 1024) * of_a_layer
    every_sixth = memory({**MISTRAL, "sliding_window": 1024, "sliding_window_pattern": 6})
    assert every_sixth.window_bytes_per_token == 27 * of_a_layer


def test_the_language_model_of_a_multimodal_one() -> None:
    inner = {name: value for name, value in MISTRAL.items() if name != "torch_dtype"}
    whole = {"text_config": inner, "torch_dtype": "float16", "vision_config": {"hidden_size": 1}}
    assert memory(whole).kv_bytes_per_token == memory(MISTRAL).kv_bytes_per_token
    assert memory({"thinker_config": whole}).attention_heads == 32


def test_a_context_that_is_stretched() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert memory({**MISTRAL, "max_position_embeddings": 32768, "rope_scaling": yarn}).context_length == 131072


def test_a_model_without_attention() -> None:
    assert memory_of({"hidden_size": 4096, "num_hidden_layers": 32}, 1000) is None


def write(folder: Path, config: object, **files: bytes) -> str:
    (folder / "config.json").write_text(json.dumps(config))
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    return str(folder)


def test_a_folder_with_an_index(tmp_path: Path) -> None:
    index = json.dumps({"metadata": {"total_size": LLAMA_70B_BYTES}, "weight_map": {}}).encode()
    model = write(tmp_path, LLAMA_70B, model__safetensors__index__json=index)
    found = read_model_memory(model, quantization="fp8")
    assert found is not None
    assert found.weight_bytes == memory(LLAMA_70B, LLAMA_70B_BYTES, quantization="fp8").weight_bytes


def test_a_folder_with_one_file(tmp_path: Path) -> None:
    found = read_model_memory(write(tmp_path, {**LLAMA_70B, "vocab_size": 0}, model__safetensors=bytes(5000)))
    assert found is not None
    assert found.weight_bytes == 5000


@pytest.mark.parametrize("config", ["[", {}, {"hidden_size": "wide"}, {**MISTRAL, "num_attention_heads": [1]}])
def test_a_folder_that_cannot_be_read(config: object, tmp_path: Path) -> None:
    assert read_model_memory(write(tmp_path, config, model__safetensors=bytes(10))) is None


def test_a_folder_without_weights(tmp_path: Path) -> None:
    assert read_model_memory(write(tmp_path, MISTRAL)) is None
    assert read_model_memory(str(tmp_path / "missing")) is None
