"""Engine arguments of vLLM for offline throughput, where nobody has set them. docs/performance.md has the reasons. Pure.

They apply to vLLM on GPUs; on a CPU, only `disable_log_stats` does.
"""

import math
from collections.abc import Collection
from typing import Any

from batchfile.machine.capacity import GIB, Lengths, Setup, gpu_named
from batchfile.machine.devices import Device
from batchfile.machine.model_memory import ModelMemory

UTILIZATION = 0.95  # of GPUs that nobody else uses
UTILIZATION_OF_POOLS = 0.9
LARGE_GPU_BYTES, LARGEST_GPU_BYTES = 70 * GIB, 160 * GIB  # as vLLM divides them
THROUGHPUT_GPU_BYTES = 40 * GIB
THROUGHPUT_SINCE = (0, 17)  # vLLM's first version with performance_mode
GRAPHS, GRAPHS_MAX = 512, 1024  # sequences: vLLM's own limit, and ours
SLOTS_STEP, SLOTS_MIN = 8, 16
_OF_GRAPHS = {"max_cudagraph_capture_size", "cudagraph_capture_sizes", "compilation_config", "enforce_eager"}
NAMES = (
    *("disable_log_stats", "gpu_memory_utilization", "performance_mode"),
    *("max_num_seqs", "max_cudagraph_capture_size"),
)


def utilization_of(device: Device) -> float:
    """For GPUs that nobody else uses, which may still have a desktop: less than what is free, and as in a pool at least."""
    if not device.memory_bytes:
        return UTILIZATION
    free = math.floor(100 * device.free_bytes / device.memory_bytes) / 100
    return max(UTILIZATION_OF_POOLS, min(UTILIZATION, round(free - 0.01, 2)))


def throughput_arguments(
    device: Device,
    *,
    vllm: tuple[int, ...],
    given: Collection[str] = (),
    is_alone: bool = False,
    is_scraped: bool = False,
    is_generating: bool = True,
    utilization: float | None = None,
    tensor_parallel_size: int = 1,
    pipeline_parallel_size: int = 1,
    max_num_seqs: int | None = None,
    memory: ModelMemory | None = None,
    lengths: Lengths | None = None,
) -> dict[str, Any]:
    """For each engine whose GPUs are like `device`. `given`: names of arguments that are set, which are left out.

    `vllm`: its version. `is_alone`: nobody else uses the GPUs. `is_scraped`: something may read vLLM's metrics.
    `utilization`, `max_num_seqs`: if they are set. `memory`, `lengths`: of the model and the requests, if known.
    """
    found: dict[str, Any] = {"disable_log_stats": not is_scraped}
    if device.kind == "cpu":
        return {name: value for name, value in found.items() if name not in given}
    if utilization is None and is_alone:
        found["gpu_memory_utilization"] = utilization = utilization_of(device)
    if is_generating:
        is_throughput = device.memory_bytes >= THROUGHPUT_GPU_BYTES and vllm >= THROUGHPUT_SINCE
        if is_throughput:
            found["performance_mode"] = "throughput"
        slots = max_num_seqs or slots_of_vllm(device, is_throughput=is_throughput)
        if max_num_seqs is None and memory is not None and lengths is not None and device.memory_bytes:
            gpu = gpu_named(device.name, device.memory_bytes)
            setup = Setup(
                memory=memory,
                gpu=gpu,
                num_gpus=tensor_parallel_size * pipeline_parallel_size,
                pipeline_parallel_size=pipeline_parallel_size,
                utilization=utilization or UTILIZATION_OF_POOLS,
            )
            fitting = max(SLOTS_MIN, math.ceil(setup.running(lengths) / SLOTS_STEP) * SLOTS_STEP)
            if fitting < slots:
                found["max_num_seqs"] = slots = fitting
        if slots > GRAPHS and not _OF_GRAPHS & set(given):
            found["max_cudagraph_capture_size"] = min(slots, GRAPHS_MAX)
    return {name: value for name, value in found.items() if name not in given}


def slots_of_vllm(device: Device, *, is_throughput: bool) -> int:
    """What vLLM's `LLM` sets for `max_num_seqs` on a GPU of this kind."""
    is_large = device.memory_bytes >= LARGEST_GPU_BYTES or (
        device.memory_bytes >= LARGE_GPU_BYTES and "a100" not in device.name.lower()
    )
    return (1024 if is_large else 256) * (2 if is_throughput else 1)
