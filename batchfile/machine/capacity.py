"""How many requests of a model run at a time on GPUs, and how fast: the arithmetic of docs/performance.md. Pure.

A model's step reads all weights once, and the KV cache of each running request; a prompt is computed before.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from batchfile.engine.vllm.cpu import GIB
from batchfile.machine.devices import Device
from batchfile.machine.layout import OVERHEAD_BYTES
from batchfile.machine.model_memory import ModelMemory

EXPECTED = (0.5, 0.75)  # the part of the bound that good engines reach


@dataclass(frozen=True, slots=True)
class Gpu:
    """`flops`: dense, with 16 bits. `bandwidth`: bytes/s of its memory. 0: unknown. `has_fp8`: or only INT8."""

    name: str
    memory_bytes: int
    flops: float = 0.0
    bandwidth: float = 0.0
    has_fp8: bool = True


# name, GiB, TFLOP/s, GB/s: of the makers' data sheets
_NVIDIA = (
    *(("B200", 180, 2250, 8000), ("H200", 141, 989, 4800), ("GH200", 96, 989, 4000), ("H20", 96, 148, 4000)),
    *(("H100 NVL", 94, 835, 3900), ("H100", 80, 989, 3350), ("L40S", 48, 362, 864), ("L4", 24, 121, 300)),
    *(("RTX 6000 Ada", 48, 364, 960), ("RTX 5090", 32, 209, 1792), ("RTX 4090", 24, 165, 1008)),
)
_OLDER = (
    *(("A100 80GB", 80, 312, 2039), ("A100", 40, 312, 1555), ("A40", 48, 150, 696), ("A10", 24, 125, 600)),
    *(("RTX A6000", 48, 155, 768), ("RTX 3090", 24, 71, 936), ("V100", 32, 125, 900), ("T4", 16, 65, 320)),
)
_AMD = (("MI325X", 256, 1307, 6000), ("MI300X", 192, 1307, 5300))
GPUS = tuple(
    Gpu(name, gib * GIB, flops * 1e12, bandwidth * 1e9, has_fp8)
    for table, has_fp8 in ((_NVIDIA, True), (_OLDER, False), (_AMD, True))
    for name, gib, flops, bandwidth in table
)
_GB = re.compile(r"(\d+(?:\.\d+)?) ?gi?b")


def gpu_named(name: str, memory_bytes: int = 0) -> Gpu | None:
    """By a name such as 4090, A100-80GB or that of nvidia-smi, or by its memory, such as 24GB. None: unknown.

    `memory_bytes`: as the machine reports it; 0: as in the name or the data sheet.
    """
    text = re.sub(r"[-_ ]+", " ", name.lower())
    given = _GB.search(text)
    memory = memory_bytes or (int(float(given[1]) * GIB) if given else 0)
    words = set(text.split())
    for gpu in GPUS:
        wanted = {word for word in gpu.name.lower().split() if word != "rtx" and not _GB.fullmatch(word)}
        if wanted <= words and ("80GB" not in gpu.name or memory > 60 * GIB):
            return replace(gpu, memory_bytes=memory or gpu.memory_bytes)
    return Gpu(name, memory) if memory else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Mean tokens of a request. `shared`: those of its prompt that other requests begin with too."""

    input: float
    output: float
    shared: float = 0.0

    @property
    def held(self) -> float:
        """What a running request adds to the KV cache, halfway through its answer. A shared prefix is held once."""
        return max(1.0, self.input - self.shared + self.output / 2)

    @property
    def computed(self) -> float:
        return self.input - self.shared


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """An engine: `num_gpus` of one kind that share a model."""

    memory: ModelMemory
    gpu: Gpu
    num_gpus: int = 1
    pipeline_parallel_size: int = 1
    utilization: float

    @classmethod
    def on(
        cls, memory: ModelMemory, devices: Sequence[Device], utilization: float, pipeline_parallel_size: int = 1
    ) -> "Setup":
        """`devices`: of one engine; the smallest one decides."""
        device = min(devices, key=lambda one: one.memory_bytes)
        return cls(
            memory=memory,
            gpu=gpu_named(device.name, device.memory_bytes) or Gpu(device.name, device.memory_bytes),
            num_gpus=len(devices),
            pipeline_parallel_size=pipeline_parallel_size,
            utilization=utilization,
        )

    @property
    def kv_room(self) -> float:
        """Bytes for the KV cache on each GPU; negative if the weights do not fit."""
        return self.utilization * self.gpu.memory_bytes - OVERHEAD_BYTES - self.memory.weight_bytes / self.num_gpus

    def running(self, lengths: Lengths) -> int:
        """How many requests the KV cache holds at a time."""
        tensor_parallel_size = max(1, self.num_gpus // self.pipeline_parallel_size)
        each = self.memory.kv_bytes_on_each(lengths.held, tensor_parallel_size) / self.pipeline_parallel_size
        room = self.kv_room - self.memory.kv_bytes_on_each(lengths.shared, tensor_parallel_size)
        return max(0, int(room // each)) if each else 0

    def token_s(self) -> float | None:
        """The least time of a token: each step reads all weights."""
        return self.memory.step_bytes / (self.num_gpus * self.gpu.bandwidth) if self.gpu.bandwidth else None

    def requests_per_s(self, lengths: Lengths, num_running: int) -> float | None:
        """The bound: prompts are limited by computation, and answers by that or by reading weights and KV cache."""
        token_s = self.token_s()
        if token_s is None or not self.gpu.flops or not num_running:
            return None
        is_8bit = self.memory.multiplies == "int8" or (self.memory.multiplies == "fp8" and self.gpu.has_fp8)
        per_s = self.gpu.flops * self.num_gpus * (2 if is_8bit else 1)
        a_token_s = 2 * self.memory.active_parameters / per_s
        cache = self.memory.kv_bytes(lengths.input + lengths.output / 2)
        read_s = token_s / num_running + cache / (self.gpu.bandwidth * self.num_gpus)
        return 1 / (lengths.computed * a_token_s + lengths.output * max(a_token_s, read_s))
