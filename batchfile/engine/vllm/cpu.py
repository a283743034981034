"""Chooses the data type and the number of cores for vLLM on a CPU, and reads the facts about this machine's CPU.

vLLM's default for a CPU is bfloat16 on all cores but one. On a CPU without bfloat16 instructions, vLLM emulates them at
about a third of the speed of float32. `read_cpu` reads /proc, /sys, the cgroup and sysctl; facts that cannot be read
are unknown, without an error.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from batchfile.errors import SettingsError

GIB = 1024**3
# The memory of vLLM's processes without weights and KV cache: Python, torch, and the tensors of one step.
OVERHEAD_BYTES = GIB * 3 // 2
BYTES_OF = {"float32": 4, "bfloat16": 2, "float16": 2}

X86 = frozenset({"x86_64", "amd64"})
ARM = frozenset({"aarch64", "arm64"})
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
FLOAT16_FLAGS = frozenset({"avx512_fp16", "amx_fp16", "asimdhp"})
# The minimum that vLLM's compiled code for a CPU requires.
NEEDED_FLAG = dict.fromkeys(X86, "avx2") | dict.fromkeys(ARM, "asimd")

BIND, RESERVED, THREADS = "VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_NUM_OF_RESERVED_CPU", "OMP_NUM_THREADS"
KV_CACHE = "VLLM_CPU_KVCACHE_SPACE"
KV_CACHE_GIB_MIN = 1  # vLLM accepts only whole numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """The part of the machine that this process may use.

    `machine`: from `platform.machine()`. `flags`: of the processor, with Linux's names; None if unknown.
    `cores`: one logical CPU of each core in this process's affinity. `quota`: of a container, in CPUs.
    `memory_bytes`: available now, also within the container's limit; None if unknown.
    """

    machine: str
    flags: frozenset[str] | None
    cores: tuple[int, ...]
    quota: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Facts from a model's files. `dtype`: of the stored weights, by its name in torch. None: unknown."""

    dtype: str | None = None
    is_quantized: bool = False
    weight_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuChoice:
    """`dtype` for vLLM; `environ`: variables to set before it starts; `note`: the choice in one line, for people."""

    dtype: str
    note: str
    environ: dict[str, str] = field(default_factory=dict)


def check_usable(cpu: Cpu) -> None:
    """Raises: SettingsError for a processor on which vLLM would crash with an illegal instruction."""
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
    """`dtype`: "auto" leaves the choice to this function; any other value is kept.

    Raises: SettingsError if the memory is too small for the model.
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
    """0 if unset, for which vLLM chooses. Raises: SettingsError for a value that vLLM rejects: it needs whole GiB."""
    text = environ.get(KV_CACHE) or "0"
    if not (text.isascii() and text.isdigit()):
        raise SettingsError(f"{KV_CACHE}={text} is not a whole number of GiB; set 1 or more, or unset it")
    return float(text)


def core_shares(cores: Sequence[int], num: int) -> list[str | None]:
    """Separate cores for each of `num` engines on one machine, in vLLM's format; None if there are too few.

    Two engines on the same cores slow each other down, because their threads are bound to the cores and spin.
    """
    if num < 2 or len(cores) < num:
        return [None] * num
    bounds = [number * len(cores) // num for number in range(num + 1)]
    return [",".join(map(str, cores[start:end])) for start, end in pairwise(bounds)]


def _dtype(cpu: Cpu, model: ModelFacts, *, dtype: str, is_embedding: bool) -> tuple[str, str]:
    """The data type for vLLM, and its description."""
    machine = cpu.machine.lower()
    if dtype != "auto":
        is_slow = dtype in {"bfloat16", "float16", "half"} and not _has(cpu, "float16" if dtype == "half" else dtype)
        return dtype, f"{dtype} as set" + (", which this CPU emulates (float32 is faster)" if is_slow else "")
    if cpu.flags is None or machine not in X86 | ARM:
        return "auto", "the model's own data type"
    if model.is_quantized:
        return "auto", "the data type of the quantized model"
    wanted = model.dtype or "bfloat16"
    if wanted == "float32":  # vLLM converts float32 models to a smaller type
        wanted = "float16" if is_embedding else "bfloat16"
    if _has(cpu, wanted):
        return "auto", wanted
    return "float32", f"float32 (the CPU has no {wanted} instructions)"


def _has(cpu: Cpu, dtype: str) -> bool:
    flags = {"bfloat16": BFLOAT16_FLAGS, "float16": FLOAT16_FLAGS}.get(dtype)
    return cpu.flags is None or flags is None or bool(cpu.flags & flags)


def _threads(cpu: Cpu, environ: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """The variables with which vLLM uses all allowed cores, and a description. The user's variables take precedence."""
    num = len(cpu.cores)
    if bound := environ.get(BIND):
        if bound in {"auto", "nobind"}:
            return {}, f"cores as {BIND}={bound} says"
        return {}, f"cores {bound} ({BIND})"
    if threads := environ.get(THREADS):  # vLLM would replace it by its own number
        return {BIND: "nobind"}, f"{threads} threads ({THREADS})"
    if reserved := environ.get(RESERVED):
        return {}, f"all but {reserved} of {_counted(num)} ({RESERVED})"
    if cpu.quota is not None and cpu.quota < num:
        allowed = max(1, int(cpu.quota))
        # The system chooses the cores: other containers would use the first ones too.
        return {
            BIND: "nobind",
            THREADS: str(allowed),
        }, f"{_counted(allowed)} (the container's limit; the machine has {num})"
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


SYSCTL_S_MAX = 10.0


def read_cpu(root: Path = Path("/")) -> Cpu:
    """`root`: the directory that contains proc and sys."""
    cores = _cores(root)
    limit = _memory_left(root)
    available = [number for number in (_available_memory(root), limit) if number is not None]
    return Cpu(
        machine=platform.machine(),
        flags=_mac_flags() if sys.platform == "darwin" else flags_of(_text(root / "proc/cpuinfo")),
        cores=cores,
        quota=_quota(root),
        memory_bytes=min(available, default=None),
    )


def flags_of(cpuinfo: str) -> frozenset[str] | None:
    """The flags of the first processor in Linux's /proc/cpuinfo: `flags` on x86, `Features` on Arm. None if missing."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() in {"flags", "features"}:
            return frozenset(value.split())
    return None


def _mac_flags() -> frozenset[str] | None:
    """The flags on macOS, with Linux's names."""
    if platform.machine() != "arm64":
        listed = _sysctl("machdep.cpu.features", "machdep.cpu.leaf7_features")
        return frozenset(listed.lower().split()) or None
    found = {"asimd"}
    for name, flag in (("hw.optional.arm.FEAT_BF16", "bf16"), ("hw.optional.arm.FEAT_FP16", "asimdhp")):
        if _sysctl(name).strip() == "1":
            found.add(flag)
    return frozenset(found)


def _sysctl(*names: str) -> str:
    try:
        command = ["sysctl", "-n", *names]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SYSCTL_S_MAX, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def _cores(root: Path) -> tuple[int, ...]:
    """The first allowed logical CPU of each core."""
    if hasattr(os, "sched_getaffinity"):
        allowed: Iterable[int] = os.sched_getaffinity(0)
    else:
        allowed = range(os.cpu_count() or 1)
    seen: set[str] = set()
    found = []
    for number in sorted(allowed):
        siblings = _text(root / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list").strip()
        core = siblings or str(number)
        if core not in seen:
            seen.add(core)
            found.append(number)
    return tuple(found)


def _cgroup_folders(root: Path) -> list[Path]:
    """The cgroup v2 of this process and all its parents, because the lowest limit counts."""
    base = root / "sys/fs/cgroup"
    own = next((line[3:] for line in _text(root / "proc/self/cgroup").splitlines() if line.startswith("0::")), "/")
    parts = [part for part in own.split("/") if part and part != ".."]
    return [base.joinpath(*parts[:length]) for length in range(len(parts) + 1)]


def _quota(root: Path) -> float | None:
    quotas = []
    for folder in _cgroup_folders(root):
        fields = _text(folder / "cpu.max").split()
        with suppress(ValueError, IndexError, ZeroDivisionError):
            quotas.append(int(fields[0]) / int(fields[1]))
    with suppress(ValueError, ZeroDivisionError):  # cgroup v1; -1 means unlimited
        old = root / "sys/fs/cgroup/cpu"
        quota = int(_text(old / "cpu.cfs_quota_us")) / int(_text(old / "cpu.cfs_period_us"))
        if quota > 0:
            quotas.append(quota)
    return min(quotas, default=None)


def _memory_left(root: Path) -> int | None:
    """The memory left within the limits of the cgroup. Cached files count as used there, but can be reclaimed."""
    left = []
    for folder in _cgroup_folders(root):
        left += _left(folder, "memory.max", "memory.current", "inactive_file", "active_file")
    old = root / "sys/fs/cgroup/memory"
    left += _left(old, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "total_active_file")
    return min(left, default=None)


def _left(folder: Path, limit: str, used: str, *cached: str) -> list[int]:
    fields = dict(line.split(" ", 1) for line in _text(folder / "memory.stat").splitlines() if " " in line)
    try:
        reclaimable = sum(int(fields.get(name, 0)) for name in cached)
        return [max(0, int(_text(folder / limit)) - int(_text(folder / used)) + reclaimable)]
    except ValueError:  # unlimited: the file is missing, or contains "max"
        return []


def _available_memory(root: Path) -> int | None:
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            with suppress(ValueError, IndexError):
                return int(value.split()[0]) * 1024
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
