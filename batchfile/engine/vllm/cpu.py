"""Which data type and how many cores vLLM gets on a processor. Pure rules: what the machine says is read elsewhere.

Needed because vLLM's own choice for a CPU is bfloat16 on all cores but one, whatever the processor can do. Where it
has no bfloat16 instructions vLLM emulates them, at about a third of the speed of float32.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from batchfile.errors import SettingsError

GIB = 1024**3
# What vLLM's processes take besides the weights and the KV cache: Python, torch, and the tensors of one step.
OVERHEAD_BYTES = GIB * 3 // 2
BYTES_OF = {"float32": 4, "bfloat16": 2, "float16": 2}

X86 = frozenset({"x86_64", "amd64"})
ARM = frozenset({"aarch64", "arm64"})
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
FLOAT16_FLAGS = frozenset({"avx512_fp16", "amx_fp16", "asimdhp"})
# The least that vLLM's compiled code for a CPU has been built for.
NEEDED_FLAG = dict.fromkeys(X86, "avx2") | dict.fromkeys(ARM, "asimd")

BIND, RESERVED, THREADS = "VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_NUM_OF_RESERVED_CPU", "OMP_NUM_THREADS"
KV_CACHE = "VLLM_CPU_KVCACHE_SPACE"
KV_CACHE_GIB_MIN = 1  # vLLM reads a whole number


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """What this process may use of the machine.

    `machine`: as `platform.machine()` says. `flags`: of the processor, in Linux's words; None where they are not known.
    `cores`: one logical CPU of each core, those of this process's affinity. `quota`: of a container, in CPUs.
    `memory_bytes`: available now, within the container's limit too; None where that is not known.
    """

    machine: str
    flags: frozenset[str] | None
    cores: tuple[int, ...]
    quota: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What a model's files say. `dtype`: of the stored weights, by its name in torch. None: not known."""

    dtype: str | None = None
    is_quantized: bool = False
    weight_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuChoice:
    """`dtype` for vLLM; `environ` to set before it starts; `note`: the choice in one line, for people."""

    dtype: str
    note: str
    environ: dict[str, str] = field(default_factory=dict)


def check_usable(cpu: Cpu) -> None:
    """Raises: SettingsError for a processor on which vLLM's code would end with an illegal instruction."""
    needed = NEEDED_FLAG.get(cpu.machine.lower())
    if needed is not None and cpu.flags is not None and needed not in cpu.flags:
        raise SettingsError(
            f"vLLM cannot run on this CPU ({cpu.machine}): it needs {needed.upper()} instructions, which the CPU or "
            "the virtual machine does not offer; use a newer machine, or another engine: --engine http with the "
            "address of a model server, or --engine echo to try batchfile without a model"
        )


def choose(
    cpu: Cpu, model: ModelFacts, *, dtype: str, is_embedding: bool, environ: Mapping[str, str], kv_gib: float
) -> CpuChoice:
    """`dtype` "auto" leaves the choice to this function; any other is the user's and is kept.

    Raises: SettingsError where the memory does not hold the model.
    """
    threads, where = _threads(cpu, environ)
    chosen, why = _dtype(cpu, model, dtype=dtype, is_embedding=is_embedding)
    needed = _needed_bytes(model, chosen, kv_gib)
    if needed is not None and cpu.memory_bytes is not None and needed > cpu.memory_bytes:
        smaller = _needed_bytes(model, "auto", kv_gib)
        if dtype != "auto" or chosen == "auto" or smaller is None or smaller > cpu.memory_bytes:
            raise SettingsError(_too_little(needed, cpu.memory_bytes, kv_gib))
        chosen = "auto"
        why = f"the model's own data type, which it emulates slowly (float32 would need {needed / GIB:.1f} GiB)"
    return CpuChoice(dtype=chosen, note=f"vLLM computes on the CPU with {why}, on {where}", environ=threads)


def kv_cache_gib(environ: Mapping[str, str]) -> float:
    """0 where vLLM takes what it finds. Raises: SettingsError for what vLLM cannot read: it takes whole GiB."""
    text = environ.get(KV_CACHE) or "0"
    if not (text.isascii() and text.isdigit()):
        raise SettingsError(f"{KV_CACHE}={text} is not a whole number of GiB; set 1 or more, or unset it")
    return float(text)


def core_shares(cores: Sequence[int], num: int) -> list[str | None]:
    """For each of `num` engines on one machine its own cores, as vLLM wants them; None where there are too few.

    Two engines on the same cores wait for each other: their threads are bound to them, and spin.
    """
    if num < 2 or len(cores) < num:
        return [None] * num
    bounds = [number * len(cores) // num for number in range(num + 1)]
    return [",".join(map(str, cores[start:end])) for start, end in pairwise(bounds)]


def _dtype(cpu: Cpu, model: ModelFacts, *, dtype: str, is_embedding: bool) -> tuple[str, str]:
    """The data type for vLLM, and the words for it."""
    machine = cpu.machine.lower()
    if dtype != "auto":
        is_slow = dtype in {"bfloat16", "float16", "half"} and not _has(cpu, "float16" if dtype == "half" else dtype)
        return dtype, f"{dtype} as set" + (", which this CPU emulates (float32 is faster)" if is_slow else "")
    if cpu.flags is None or machine not in X86 | ARM:
        return "auto", "the model's own data type"
    if model.is_quantized:
        return "auto", "the data type of the quantized model"
    wanted = model.dtype or "bfloat16"
    if wanted == "float32":  # vLLM makes it smaller by itself
        wanted = "float16" if is_embedding else "bfloat16"
    if _has(cpu, wanted):
        return "auto", wanted
    return "float32", f"float32 (the CPU has no {wanted} instructions)"


def _has(cpu: Cpu, dtype: str) -> bool:
    flags = {"bfloat16": BFLOAT16_FLAGS, "float16": FLOAT16_FLAGS}.get(dtype)
    return cpu.flags is None or flags is None or bool(cpu.flags & flags)


def _threads(cpu: Cpu, environ: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """What to set so that vLLM takes every core that it may, and the words for it. The user's own variables count."""
    num = len(cpu.cores)
    if bound := environ.get(BIND):
        if bound in {"auto", "nobind"}:
            return {}, f"cores as {BIND}={bound} says"
        return {}, f"cores {bound} ({BIND})"
    if threads := environ.get(THREADS):  # vLLM would put its own number in its place
        return {BIND: "nobind"}, f"{threads} threads ({THREADS})"
    if reserved := environ.get(RESERVED):
        return {}, f"all but {reserved} of {_counted(num)} ({RESERVED})"
    if cpu.quota is not None and cpu.quota < num:
        allowed = max(1, int(cpu.quota))
        # Which cores is for the system to say: another container has as good a claim to the first ones.
        return {BIND: "nobind", THREADS: str(allowed)}, f"{_counted(allowed)} (the container's limit; {num} are there)"
    return {RESERVED: "0"}, f"{'all ' if num > 1 else ''}{_counted(num)}"


def _counted(num: int) -> str:
    return f"{num} core" + ("" if num == 1 else "s")


def _needed_bytes(model: ModelFacts, dtype: str, kv_gib: float) -> int | None:
    if model.weight_bytes is None:
        return None
    grown = 1.0
    if not model.is_quantized and model.dtype in BYTES_OF:
        grown = BYTES_OF.get(dtype, min(2, BYTES_OF[model.dtype])) / BYTES_OF[model.dtype]
    return int(model.weight_bytes * grown + kv_gib * GIB) + OVERHEAD_BYTES


def _too_little(needed: int, available: int, kv_gib: float) -> str:
    advice = ["end other programs", "raise the container's limit", "use a smaller model"]
    if kv_gib > KV_CACHE_GIB_MIN:
        advice.append(f"set {KV_CACHE}={KV_CACHE_GIB_MIN} for less KV cache")
    return (
        f"the model needs {needed / GIB:.1f} GiB of memory (weights, {kv_gib:g} GiB of KV cache, and vLLM itself) and "
        f"{available / GIB:.1f} GiB are available: {', '.join(advice[:-1])}, or {advice[-1]}"
    )
