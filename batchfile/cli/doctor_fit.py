"""What fits: the check of `batchfile doctor` that calculates how many requests of a model run at a time, and how fast."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from batchfile.errors import SettingsError
from batchfile.machine.capacity import EXPECTED, GIB, GPUS, Lengths, Setup, gpu_named
from batchfile.machine.devices import Device
from batchfile.machine.layout import Wanted, plan_replicas
from batchfile.machine.model_memory import ModelMemory, read_model_memory

RUNNING_MIN = 64  # of fewer, each step reads all weights for too few tokens
SLOTS_MAX = 1024  # that are assumed to run at most
_COUNTED = re.compile(r"(?:(\d+) ?x ?)?(.+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """`figures`: None where the model does not fit or is not known."""

    is_enough: bool
    detail: str
    figures: dict[str, float | str] | None = None


def devices_named(text: str) -> list[Device]:
    """GPUs by their number and name or memory, such as 2xA100-80GB, 4090 or 24GB. Raises: SettingsError."""
    found = _COUNTED.fullmatch(text.strip())
    gpu = None if found is None else gpu_named(found[2])
    if found is None or gpu is None or not 1 <= int(found[1] or 1) <= 64:
        known = ", ".join(gpu.name for gpu in GPUS)
        raise SettingsError(f"--gpu {text}: use a name such as 2xA100-80GB or 4090, or a memory such as 24GB; {known}")
    return [
        Device(index=str(n), kind="cuda", name=gpu.name, memory_bytes=gpu.memory_bytes, free_bytes=gpu.memory_bytes)
        for n in range(int(found[1] or 1))
    ]


def fit_of(
    model: str,
    devices: Sequence[Device],
    wanted: Wanted,
    lengths: Lengths,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    quantization: str | None = None,
    kv_cache_dtype: str = "auto",
) -> Fit:
    """Raises: SettingsError where the model does not fit, with what it needs."""
    memory = read_model_memory(
        model, revision=revision, dtype=dtype, quantization=quantization, kv_cache_dtype=kv_cache_dtype
    )
    if memory is None:
        return Fit(is_enough=False, detail=f"{model}: its config.json or the size of its weights cannot be read")
    layout = plan_replicas(devices, wanted, model, memory)
    setup, num_replicas = _setup(memory, layout.replicas[0], wanted), len(layout.replicas)
    running = setup.running(lengths)
    rate = setup.requests_per_s(lengths, min(running, SLOTS_MAX))
    num_gpus, gpu = setup.num_gpus, setup.gpu
    size = lengths.input + lengths.output
    length = f"{lengths.input:,.0f} + {lengths.output:,.0f} tokens"
    each = f"{num_replicas} replicas of " if num_replicas > 1 else ""
    detail = (
        f"{model} on {each}{num_gpus} x {gpu.name}: weights {memory.weight_bytes / GIB:.1f} GiB, KV cache "
        f"{setup.kv_room * num_gpus / GIB:.1f} GiB at gpu_memory_utilization {setup.utilization:g}; {running:,} "
        f"requests of {length} run at a time{' in each' if num_replicas > 1 else ''}"
    )
    if rate is not None:
        low, high = (rate * num_replicas * part for part in EXPECTED)
        detail += f"; expect {low:.2g} to {high:.2g} requests/s (at most {rate * num_replicas:.2g})"
    if running < RUNNING_MIN:
        detail += f"; fewer than {RUNNING_MIN} leave the GPUs waiting for memory: {_advice(setup, lengths)}"
    figures: dict[str, float | str] = {
        "model": model,
        "gpu": gpu.name,
        "gpus": num_gpus,
        "replicas": num_replicas,
        "gpu_memory_utilization": setup.utilization,
        "weight_bytes": memory.weight_bytes,
        "kv_cache_bytes": round(setup.kv_room * num_gpus),
        "kv_bytes_per_token": memory.kv_bytes_per_token,
        "request_tokens": size,
        "running": running,
    }
    if rate is not None:
        figures["requests_per_s_max"] = round(rate * num_replicas, 3)
    return Fit(is_enough=running >= RUNNING_MIN, detail=detail, figures=figures)


def _setup(memory: ModelMemory, devices: Sequence[Device], wanted: Wanted) -> Setup:
    first = devices[0]
    gpu = gpu_named(first.name, first.memory_bytes)
    assert gpu is not None, "a device with memory has a name or a size"
    return Setup(
        memory=memory,
        gpu=gpu,
        num_gpus=len(devices),
        pipeline_parallel_size=wanted.pipeline_parallel_size,
        utilization=wanted.gpu_memory_utilization,
    )


def _advice(setup: Setup, lengths: Lengths) -> str:
    """What brings more requests, with how many."""
    ways = []
    if setup.utilization < 0.95:
        ways.append(f"gpu_memory_utilization 0.95 ({replace(setup, utilization=0.95).running(lengths):,})")
    memory = setup.memory
    if memory.weight_bytes > 1.5 * memory.parameters:
        small = replace(memory, weight_bytes=memory.weight_bytes - memory.parameters)
        ways.append(f"weights of 8 bits ({replace(setup, memory=small).running(lengths):,})")
    halved = replace(memory, kv_bytes_per_token=memory.kv_bytes_per_token // 2)
    ways.append(f"a KV cache of 8 bits ({replace(setup, memory=halved).running(lengths):,})")
    return ", ".join(ways) + ", or more GPUs"
