"""Engine arguments of vLLM for offline throughput, where none are set. docs/performance.md has the reasons. Pure."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from batchfile.engine.vllm.cpu import GIB
from batchfile.machine.capacity import Lengths, Setup
from batchfile.machine.devices import Device
from batchfile.machine.model_memory import ModelMemory

UTILIZATION = 0.95  # of GPUs that nobody else uses
UTILIZATION_OF_POOLS = 0.9
LARGE_GPU_BYTES = 70 * GIB  # vLLM has more slots on such a GPU, but for an A100
THROUGHPUT_GPU_BYTES = 40 * GIB
GRAPHS, GRAPHS_MAX = 512, 1024  # sequences: vLLM's own limit, and ours
SLOTS_STEP, SLOTS_MIN = 8, 16
SLOTS_MARGIN = 2  # times what fits: lengths are estimates, and too few slots cost more than too many
_OF_GRAPHS = {"max_cudagraph_capture_size", "cudagraph_capture_sizes", "compilation_config", "enforce_eager"}
NAMES = (
    *("disable_log_stats", "gpu_memory_utilization", "performance_mode", "max_num_seqs"),
    "max_cudagraph_capture_size",
)


def utilization_of(devices: Sequence[Device]) -> float:
    """For GPUs that nobody else uses. With a desktop on one: less than what is free, but as in a pool at least."""
    shares = [one.free_bytes / one.memory_bytes for one in devices if one.memory_bytes]
    free = [share for share in shares if share >= UTILIZATION_OF_POOLS]  # the others are not used
    most = math.floor(100 * min(free, default=1.0)) / 100 - 0.01
    return max(UTILIZATION_OF_POOLS, min(UTILIZATION, round(most, 2)))


def throughput_arguments(
    devices: Sequence[Device],
    given: Mapping[str, Any],
    *,
    known: Collection[str] = (),
    is_scraped: bool = False,
    is_generating: bool = True,
    pipeline_parallel_size: int = 1,
    memory: ModelMemory | None = None,
    lengths: Lengths | None = None,
) -> dict[str, Any]:
    """`devices`: of one engine. `given`: the arguments that are set, which are left out.

    `known`: all arguments of this vLLM; empty: unknown. `is_scraped`: something may read vLLM's metrics. `memory`,
    `lengths`: of the model and the requests, if they are known.
    """
    found: dict[str, Any] = {"disable_log_stats": not is_scraped}
    if devices[0].kind != "cpu" and is_generating:
        smallest = min(devices, key=lambda device: device.memory_bytes)
        has_mode = not known or "performance_mode" in known
        if has_mode and smallest.memory_bytes >= THROUGHPUT_GPU_BYTES and not _is_a100(smallest):
            found["performance_mode"] = "throughput"
        mode = given.get("performance_mode", found.get("performance_mode"))
        slots = given.get("max_num_seqs") or slots_of_vllm(smallest) * (2 if mode == "throughput" else 1)
        if "max_num_seqs" not in given and memory is not None and lengths is not None and smallest.memory_bytes:
            utilization = float(given.get("gpu_memory_utilization", UTILIZATION_OF_POOLS))
            setup = Setup.on(memory, devices, utilization, pipeline_parallel_size)
            fitting = max(SLOTS_MIN, math.ceil(SLOTS_MARGIN * setup.running(lengths) / SLOTS_STEP) * SLOTS_STEP)
            if fitting < slots:
                found["max_num_seqs"] = slots = fitting
        if slots > GRAPHS and not _OF_GRAPHS & given.keys():
            found["max_cudagraph_capture_size"] = min(slots, GRAPHS_MAX)
    return {name: value for name, value in found.items() if name not in given and (not known or name in known)}


def slots_of_vllm(device: Device) -> int:
    """What vLLM's `LLM` sets for `max_num_seqs` on a GPU of this kind."""
    return 1024 if device.memory_bytes >= LARGE_GPU_BYTES and not _is_a100(device) else 256


def _is_a100(device: Device) -> bool:
    """Steps of more tokens make an A100 slower, says vLLM."""
    return "a100" in device.name.lower()
