"""What fits: the check of `batchfile doctor` for how many requests of a model run at a time, and how fast."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from batchfile.engine.vllm.cpu import GIB
from batchfile.engine_settings import EngineSettings
from batchfile.errors import SettingsError
from batchfile.machine.capacity import EXPECTED, GPUS, Lengths, Setup, gpu_named
from batchfile.machine.choice import layout_for, memory_for
from batchfile.machine.defaults import UTILIZATION, utilization_of
from batchfile.machine.devices import Device

RUNNING_MIN = 64  # with fewer requests, each step reads all weights for too few tokens
RUNNING_MAX = 1024  # assumed at most
GPUS_MAX = 64
_COUNTED = re.compile(r"(?:(\d+) ?x ?)?(.+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """`figures`: None where the size of the model is not known."""

    is_enough: bool
    detail: str
    figures: dict[str, float | str] | None = None


def devices_named(text: str) -> list[Device]:
    """GPUs by their number, and name or memory: 2xA100-80GB, 4090, 24GB. Raises: SettingsError."""
    found = _COUNTED.fullmatch(text.strip())
    gpu = None if found is None else gpu_named(found[2])
    if found is None or gpu is None or not 1 <= int(found[1] or 1) <= GPUS_MAX:
        known = ", ".join(gpu.name for gpu in GPUS)
        raise SettingsError(
            f"--gpu {text}: is unknown; use a memory such as 2x24GB, or a name, with their number before it as in "
            f"2xA100-80GB: {known}"
        )
    name, memory = gpu.name, gpu.memory_bytes
    return [
        Device(index=str(number), kind="cuda", name=name, memory_bytes=memory, free_bytes=memory)
        for number in range(int(found[1] or 1))
    ]


def fit_of(
    model: str,
    devices: Sequence[Device],
    engine: EngineSettings,
    lengths: Lengths,
    *,
    revision: str | None = None,
    max_model_len: int | None = None,
) -> Fit:
    """Raises: SettingsError where the model does not fit, with what it needs."""
    layout = layout_for(engine, model, revision=revision, max_model_len=max_model_len, devices=devices)
    memory = memory_for(engine, model, devices, revision=revision)
    if memory is None:
        return Fit(is_enough=False, detail=f"{model}: its config.json or the size of its weights cannot be read")
    utilization = engine.gpu_memory_utilization or utilization_of(devices)
    setup = Setup.on(memory, layout.replicas[0], utilization, engine.pipeline_parallel_size)
    replicas, running = len(layout.replicas), setup.running(lengths)
    figures: dict[str, float | str] = {
        "model": model,
        "gpu": setup.gpu.name,
        "gpus": setup.num_gpus,
        "replicas": replicas,
        "gpu_memory_utilization": setup.utilization,
        "weight_bytes": memory.weight_bytes,
        "kv_cache_bytes": round(setup.kv_room * setup.num_gpus),
        "kv_bytes_per_token": memory.kv_bytes_per_token,
        "running": running,
    }
    where = f"{f'{replicas} replicas, each on ' if replicas > 1 else ''}{setup.num_gpus} x {setup.gpu.name}"
    detail = (
        f"{model} on {where}: weights {memory.weight_bytes / GIB:.1f} GiB, KV cache "
        f"{setup.kv_room * setup.num_gpus / GIB:.1f} GiB at gpu_memory_utilization {setup.utilization:g}; {running:,} "
        f"requests of {lengths.input:,.0f} + {lengths.output:,.0f} tokens run at a time"
    )
    rate = setup.requests_per_s(lengths, min(running, RUNNING_MAX))
    if rate is not None:
        figures["requests_per_s_max"] = round(rate * replicas, 3)
        low, high = (rate * replicas * part for part in EXPECTED)
        detail += f"; expect {low:.2g} to {high:.2g} requests/s, at most {rate * replicas:.2g}"
    if running < RUNNING_MIN:
        detail += f". With fewer than {RUNNING_MIN}, a step reads the weights for few tokens: {_advice(setup, lengths)}"
    return Fit(is_enough=running >= RUNNING_MIN, detail=detail, figures=figures)


def _advice(setup: Setup, lengths: Lengths) -> str:
    """What lets more requests run, and how many."""
    memory, ways = setup.memory, dict[str, Setup]()
    if setup.utilization < UTILIZATION:
        ways[f"gpu_memory_utilization {UTILIZATION}"] = replace(setup, utilization=UTILIZATION)
    if memory.weight_bytes > 1.5 * memory.parameters:
        small = replace(memory, weight_bytes=memory.weight_bytes - memory.parameters)
        ways["weights of 8 bits"] = replace(setup, memory=small)
    size = 2 * setup.num_gpus // setup.pipeline_parallel_size
    ways[f"tensor_parallel_size {size}"] = replace(setup, num_gpus=2 * setup.num_gpus)
    return ", ".join(f"{way} would run {tried.running(lengths):,}" for way, tried in ways.items())
