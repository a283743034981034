"""The engine arguments that are chosen where nobody has set them, and the table of them in docs/performance.md."""

import re
from pathlib import Path
from typing import Any

import pytest

from batchfile.engine_settings import EngineSettings
from batchfile.machine.capacity import Lengths
from batchfile.machine.choice import chosen_arguments
from batchfile.machine.defaults import NAMES, throughput_arguments, utilization_of
from tests.helpers.machine import Device, ModelMemory

GIB = 1024**3
DOCS = Path(__file__).parents[2] / "docs" / "performance.md"
LLAMA_70B = ModelMemory(141_107_412_992, 327_680, 64, 8, 131_072, parameters=69_503_033_344)
LLAMA_8B = ModelMemory(16_060_522_496, 131_072, 32, 8, 131_072, parameters=7_504_000_000)
LONG = Lengths(input=1000, output=1000)


def gpu(name: str, gib: float, free: float = 0.99) -> Device:
    memory = int(gib * GIB)
    return Device(index="0", kind="cuda", name=name, memory_bytes=memory, free_bytes=int(free * memory))


A100, H200, RTX_4090 = gpu("NVIDIA A100-SXM4-80GB", 80), gpu("NVIDIA H200", 141), gpu("NVIDIA GeForce RTX 4090", 24)
CPU = Device(index="0,1", kind="cpu", name="x86_64", memory_bytes=8 * GIB, free_bytes=8 * GIB)
POOL = {"gpu_memory_utilization": 0.9}


@pytest.mark.parametrize(
    ("device", "given", "chosen"),
    [
        (RTX_4090, {}, {"disable_log_stats": True}),
        (A100, {}, {"disable_log_stats": True}),
        (gpu("NVIDIA L40S", 48), {}, {"disable_log_stats": True, "performance_mode": "throughput"}),
        (
            H200,
            {},
            {"disable_log_stats": True, "performance_mode": "throughput", "max_cudagraph_capture_size": 1024},
        ),
        (
            H200,
            {"max_num_seqs": 800},
            {"disable_log_stats": True, "performance_mode": "throughput", "max_cudagraph_capture_size": 800},
        ),
        (H200, {"performance_mode": "balanced", "compilation_config": {}}, {"disable_log_stats": True}),
        (CPU, {}, {"disable_log_stats": True}),
    ],
)
def test_the_choice_by_device(device: Device, given: dict[str, Any], chosen: dict[str, Any]) -> None:
    assert throughput_arguments([device], given) == chosen


def test_no_more_slots_than_the_cache_holds() -> None:
    slots = [
        throughput_arguments([A100] * 2, {"gpu_memory_utilization": share}, memory=LLAMA_70B, lengths=LONG)[
            "max_num_seqs"
        ]
        for share in (0.9, 0.95)
    ]
    assert slots == [48, 80]  # twice 21 and 38, in steps of 8


def test_a_large_cache_leaves_the_slots_of_vllm() -> None:
    short = Lengths(input=100, output=20)
    assert "max_num_seqs" not in throughput_arguments([H200], POOL, memory=LLAMA_8B, lengths=short)


def test_a_cache_for_hardly_any_request_has_some_slots() -> None:
    chosen = throughput_arguments([A100] * 2, POOL, memory=LLAMA_70B, lengths=Lengths(input=30_000, output=0))
    assert chosen["max_num_seqs"] == 16


def test_statistics_where_something_reads_them() -> None:
    assert throughput_arguments([CPU], {}, is_scraped=True) == {"disable_log_stats": False}
    assert throughput_arguments([CPU], {"disable_log_stats": True}, is_scraped=True) == {}


def test_an_older_vllm_and_a_pooling_model() -> None:
    assert "performance_mode" not in throughput_arguments([H200], {}, known={"disable_log_stats", "max_num_seqs"})
    assert throughput_arguments([H200], {}, is_generating=False) == {"disable_log_stats": True}


def test_the_share_of_gpus_that_nobody_else_uses() -> None:
    assert utilization_of([A100]) == 0.95
    assert utilization_of([A100, gpu("NVIDIA A100-SXM4-80GB", 80, free=0.945)]) == 0.93
    assert utilization_of([gpu("full", 24, free=0.2)]) == 0.95  # it is left out
    assert utilization_of([gpu("GPU", 0)]) == 0.95


def chosen_for(engine: EngineSettings, devices: list[Device], **more: Any) -> dict[str, Any]:
    return chosen_arguments(engine, "missing", [devices], revision=None, max_num_seqs=None, is_generating=True, **more)


def test_a_run_takes_more_of_its_gpus_than_a_pool() -> None:
    assert chosen_for(EngineSettings(), [RTX_4090])["gpu_memory_utilization"] == 0.95
    assert "gpu_memory_utilization" not in chosen_for(EngineSettings(gpu_memory_utilization=0.9), [RTX_4090])
    assert "gpu_memory_utilization" not in chosen_for(EngineSettings(), [CPU])


def test_engine_arguments_override_all_choices() -> None:
    given = dict.fromkeys(NAMES, 1)
    assert chosen_for(EngineSettings(engine_args=given), [H200], is_scraped=True) == {}


def test_the_page_has_a_reason_for_each() -> None:
    section = DOCS.read_text().split("## Engine arguments that are chosen")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", section, re.MULTILINE)
    assert tuple(name for name, _, _ in rows) == NAMES
    assert all(value and reason for _, value, reason in rows)
