"""Chooses the devices of a model's replicas on this machine, from its settings."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from batchfile.engine.vllm.arguments import check_engine_arguments, known_arguments
from batchfile.engine_settings import EngineSettings
from batchfile.errors import SettingsError
from batchfile.machine.capacity import Lengths
from batchfile.machine.defaults import throughput_arguments, utilization_of
from batchfile.machine.devices import CUDA, Device, visible_devices
from batchfile.machine.layout import Layout, Wanted, plan_replicas
from batchfile.machine.model_memory import ModelMemory, read_model_memory

# With these engine arguments, a model takes less memory than its files say, or another form.
_OTHER_MEMORY = {"cpu_offload_gb", "hf_overrides", "load_format", "kv_cache_memory_bytes", "num_gpu_blocks_override"}


def layout_for(
    engine: EngineSettings,
    model: str,
    *,
    revision: str | None,
    max_model_len: int | None,
    gpus: int | str | None = None,
    replicas: int | None = None,
    devices: Sequence[Device] | None = None,
) -> Layout:
    """`gpus`, `replicas`: instead of those of `engine`. `devices` None: the visible ones. Raises: SettingsError."""
    check_engine_arguments(engine.engine_args)
    devices = visible_devices() if devices is None else devices
    longest = engine.engine_args.get("max_model_len")
    size, gpus = engine.tensor_parallel_size, engine.gpus if gpus is None else gpus
    wanted = Wanted(
        gpus="all" if gpus is None else str(gpus).strip(),
        tensor_parallel_size=None if size == "auto" else int(size),
        pipeline_parallel_size=engine.pipeline_parallel_size,
        replicas=replicas or engine.replicas,
        gpu_memory_utilization=share_of(engine) or utilization_of(devices),
        max_model_len=longest if isinstance(longest, int) and longest > 0 else max_model_len,
    )
    return plan_replicas(devices, wanted, model, memory_for(engine, model, devices, revision=revision))


def memory_for(
    engine: EngineSettings, model: str, devices: Sequence[Device], *, revision: str | None
) -> ModelMemory | None:
    """Of a model on GPUs with these settings; None: unknown."""
    if devices[0].kind == "cpu" or engine.engine_args.keys() & _OTHER_MEMORY:
        return None
    given = engine.vllm_arguments
    return read_model_memory(
        model,
        revision=revision,
        dtype=str(given.get("dtype") or "auto"),
        quantization=given.get("quantization"),
        kv_cache_dtype=str(given.get("kv_cache_dtype") or "auto"),
    )


def share_of(engine: EngineSettings) -> float | None:
    """The given `gpu_memory_utilization`; None: it is chosen. Raises: SettingsError if vLLM cannot use it."""
    share = engine.engine_args.get("gpu_memory_utilization", engine.gpu_memory_utilization)
    if share is None or (isinstance(share, int | float) and 0 < share <= 1):
        return share
    raise SettingsError(f"engine argument gpu_memory_utilization: {share!r} must be a number above 0, and at most 1")


def chosen_arguments(
    engine: EngineSettings,
    model: str,
    replicas: Sequence[Sequence[Device]],
    *,
    revision: str | None,
    max_num_seqs: int | None,
    is_generating: bool,
    is_scraped: bool = False,
    lengths: Lengths | None = None,
) -> dict[str, Any]:
    """The engine arguments of vLLM that `engine` leaves open. `lengths`: of the requests; None: unknown."""
    devices, given, chosen = replicas[0], dict(engine.vllm_arguments), dict[str, Any]()
    if max_num_seqs is not None:
        given.setdefault("max_num_seqs", max_num_seqs)
    if (share := share_of(engine)) is not None:
        given["gpu_memory_utilization"] = share
    elif devices[0].kind != "cpu":
        utilization = utilization_of([device for replica in replicas for device in replica])
        chosen["gpu_memory_utilization"] = given["gpu_memory_utilization"] = utilization
    return chosen | throughput_arguments(
        devices,
        given,
        known=known_arguments(),
        is_scraped=is_scraped,
        is_generating=is_generating,
        pipeline_parallel_size=engine.pipeline_parallel_size,
        memory=None if lengths is None else memory_for(engine, model, devices, revision=revision),
        lengths=lengths,
    )


def tensor_parallel_size(engine: EngineSettings, environ: Mapping[str, str] = os.environ) -> int:
    """Of a process that has the devices of one replica."""
    size = engine.tensor_parallel_size
    num_gpus = len([name for name in environ.get(CUDA, "").split(",") if name.strip()])
    return max(1, num_gpus // engine.pipeline_parallel_size) if size == "auto" else int(size)
