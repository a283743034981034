"""How many requests fit on GPUs, and how fast: the figures of docs/performance.md, and what `batchfile doctor` says."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from batchfile.cli.doctor_fit import devices_named, fit_of
from batchfile.engine_settings import EngineSettings
from batchfile.errors import SettingsError
from batchfile.machine.capacity import Lengths, Setup, gpu_named
from tests.helpers.machine import memory_of

DOCS = (Path(__file__).parents[2] / "docs" / "performance.md").read_text()
SHARED = Lengths(input=512, output=256, shared=300)
LONG = Lengths(input=1000, output=1000)
BASE = {"num_key_value_heads": 8, "torch_dtype": "bfloat16", "max_position_embeddings": 131072}
SMALL = {**BASE, "hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32}
MISTRAL = {**SMALL, "vocab_size": 32768}, 14_496_047_104
LLAMA_8B = {**SMALL, "vocab_size": 128256}, 16_060_522_496
LLAMA_70B = (
    {**BASE, "hidden_size": 8192, "num_attention_heads": 64, "num_hidden_layers": 80, "vocab_size": 128256},
    141_107_412_992,
)


def setup(
    model: tuple[dict[str, object], int], gpus: str, quantization: str | None = None, share: float = 0.9
) -> Setup:
    config, stored = model
    memory = memory_of(config, stored, quantization=quantization)
    assert memory is not None
    if quantization == "int8":  # a checkpoint that is multiplied with 8 bits
        memory = replace(memory, multiplies="int8")
    return Setup.on(memory, devices_named(gpus), share)


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("Mistral-7B on one RTX 4090", setup(MISTRAL, "4090")),
        ("the same in FP8", setup(MISTRAL, "4090", "fp8")),
        ("Llama-3-70B on two A100-80 SXM", setup(LLAMA_70B, "2xA100-80GB")),
        ("the same in INT8", setup(LLAMA_70B, "2xA100-80GB", "int8")),
        ("an 8B model on one H200", setup(LLAMA_8B, "H200")),
    ],
)
def test_the_figures_of_the_page(name: str, made: Setup) -> None:
    token_s, bound = made.token_s(), made.requests_per_s(SHARED, min(made.running(SHARED), 1024))
    assert token_s is not None
    assert bound is not None
    row = next(line for line in DOCS.splitlines() if line.startswith(f"| {name} |")).split(" | ")
    assert row[1] == f"{token_s * 1e3:.1f} ms"
    assert float(row[3]) == pytest.approx(bound, rel=0.01)
    low, high = (float(part) for part in row[4].split(" to "))
    assert (low, high) == (pytest.approx(bound / 2, rel=0.05), pytest.approx(bound * 0.75, rel=0.05))
    alone = Lengths(input=512, output=256)
    slower = made.requests_per_s(alone, min(made.running(alone), 1024))
    assert slower is not None
    assert row[5].startswith(f"{bound / slower:.1f} times less")


def test_what_a_larger_share_and_smaller_weights_bring() -> None:
    made = [
        setup(LLAMA_70B, "2xA100-80GB"),
        setup(LLAMA_70B, "2xA100-80GB", share=0.95),
        setup(LLAMA_70B, "2xA100-80GB", "int8"),
    ]
    assert [one.running(LONG) for one in made] == [21, 38, 160]
    assert "21 run at `gpu_memory_utilization` 0.9, 38 at 0.95, and 160 with INT8 weights at 0.9" in DOCS.replace(
        "\n", " "
    )


def test_weights_that_do_not_fit_leave_no_room() -> None:
    made = setup(LLAMA_70B, "A100-80GB")
    assert made.running(LONG) == 0
    assert made.requests_per_s(LONG, 0) is None


def test_formats_of_8_bits_by_gpu() -> None:
    on_a100, on_h100 = setup(MISTRAL, "A100-80GB", "fp8"), setup(MISTRAL, "H100", "fp8")
    prompt = Lengths(input=10_000, output=1)
    assert on_a100.requests_per_s(prompt, 64) == pytest.approx(312e12 / (2 * 7.114e9 * 10_001), rel=0.01)
    assert on_h100.requests_per_s(prompt, 64) == pytest.approx(2 * 989e12 / (2 * 7.114e9 * 10_001), rel=0.01)


@pytest.mark.parametrize(
    ("text", "name", "gib"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100 80GB", 80),
        ("NVIDIA A100-SXM4-40GB", "A100", 40),
        ("NVIDIA H100 80GB HBM3", "H100", 80),
        ("NVIDIA GeForce RTX 4090", "RTX 4090", 24),
        ("4090", "RTX 4090", 24),
        ("AMD Instinct MI300X", "MI300X", 192),
        ("h200", "H200", 141),
        ("24GB", "24GB", 24),
        ("A10G 24GB", "A10G 24GB", 24),
    ],
)
def test_a_gpu_by_its_name(text: str, name: str, gib: int) -> None:
    found = gpu_named(text)
    assert found is not None
    assert (found.name, found.memory_bytes / 1024**3) == (name, gib)


@pytest.mark.parametrize("text", ["2x", "", "abacus", "0xH100", "999xH100"])
def test_gpus_that_are_not_known(text: str) -> None:
    with pytest.raises(SettingsError, match="use a memory such as 2x24GB, or a name"):
        devices_named(text)


@pytest.fixture
def llama(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_70B[0]))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": LLAMA_70B[1]}}))
    return str(tmp_path)


def test_the_doctor_warns_when_few_requests_fit(llama: str) -> None:
    found = fit_of(llama, devices_named("2xA100-80GB"), EngineSettings(), LONG, max_model_len=8192)
    assert not found.is_enough
    assert found.figures is not None
    assert (found.figures["running"], found.figures["gpu_memory_utilization"]) == (38, 0.95)
    assert "38 requests of 1,000 + 1,000 tokens run at a time" in found.detail
    assert "weights of 8 bits would run 180" in found.detail


def test_the_doctor_is_content_with_a_quantization(llama: str) -> None:
    engine = EngineSettings(quantization="fp8", gpu_memory_utilization=0.9)
    found = fit_of(llama, devices_named("8xH100"), engine, LONG, max_model_len=8192)
    assert found.is_enough
    assert found.figures is not None
    assert found.figures["replicas"] == 4
    assert "requests/s, at most" in found.detail


def test_a_gpu_of_an_unknown_kind_has_no_rate(llama: str) -> None:
    found = fit_of(llama, devices_named("4x48GB"), EngineSettings(), LONG, max_model_len=8192)
    assert "run at a time" in found.detail
    assert "requests/s" not in found.detail


def test_the_doctor_says_what_a_model_needs(llama: str) -> None:
    with pytest.raises(SettingsError, match=r"does not fit: it needs 131\.4 GiB for weights"):
        fit_of(llama, devices_named("4090"), EngineSettings(), LONG, max_model_len=8192)


def test_a_model_of_unknown_size(tmp_path: Path) -> None:
    found = fit_of(str(tmp_path), devices_named("4090"), EngineSettings(), LONG)
    assert not found.is_enough
    assert "cannot be read" in found.detail
