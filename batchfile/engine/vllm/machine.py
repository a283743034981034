"""What this process may use of its machine: reads /proc, /sys, the cgroup and sysctl for `cpu.py`.

What cannot be read is not known; nothing here raises.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from batchfile.engine.vllm.cpu import Cpu

SYSCTL_S_MAX = 10.0


def read_cpu(root: Path = Path("/")) -> Cpu:
    """`root`: where proc and sys are."""
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
    """Of the first processor in Linux's /proc/cpuinfo: `flags` on x86, `Features` on Arm. None: it says none."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() in {"flags", "features"}:
            return frozenset(value.split())
    return None


def _mac_flags() -> frozenset[str] | None:
    """Apple's names in Linux's words."""
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
    """This process's group in cgroup v2 and all above it: the tightest limit counts."""
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
    with suppress(ValueError, ZeroDivisionError):  # cgroup v1; -1 is no limit
        old = root / "sys/fs/cgroup/cpu"
        quota = int(_text(old / "cpu.cfs_quota_us")) / int(_text(old / "cpu.cfs_period_us"))
        if quota > 0:
            quotas.append(quota)
    return min(quotas, default=None)


def _memory_left(root: Path) -> int | None:
    """Within the limits of the cgroup. Cached files count as used there, and are given up when memory is wanted."""
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
    except ValueError:  # there is no limit: no such file, or "max"
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
