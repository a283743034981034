"""Chooses the devices of a model's replicas on this machine, from its settings."""

import os
from collections.abc import Mapping, Sequence

from batchfile.engine.vllm.arguments import check_engine_arguments
from batchfile.engine_settings import EngineSettings
from batchfile.machine.devices import CUDA, Device, visible_devices
from batchfile.machine.layout import Layout, Wanted, plan_replicas
from batchfile.machine.model_memory import read_model_memory

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
    size, gpus = engine.tensor_parallel_size, engine.gpus if gpus is None else gpus
    wanted = Wanted(
        gpus="all" if gpus is None else str(gpus).strip(),
        tensor_parallel_size=None if size == "auto" else int(size),
        pipeline_parallel_size=engine.pipeline_parallel_size,
        replicas=replicas or engine.replicas,
        gpu_memory_utilization=engine.gpu_memory_utilization,
        max_model_len=max_model_len,
    )
    memory = None
    if devices[0].kind != "cpu" and not engine.engine_args.keys() & _OTHER_MEMORY:
        memory = read_model_memory(
            model,
            revision=revision,
            dtype=engine.dtype or "auto",
            quantization=engine.quantization,
            kv_cache_dtype=engine.kv_cache_dtype or "auto",
        )
    return plan_replicas(devices, wanted, model, memory)


def tensor_parallel_size(engine: EngineSettings, environ: Mapping[str, str] = os.environ) -> int:
    """Of a process that has the devices of one replica."""
    size = engine.tensor_parallel_size
    num_gpus = len([name for name in environ.get(CUDA, "").split(",") if name.strip()])
    return max(1, num_gpus // engine.pipeline_parallel_size) if size == "auto" else int(size)
