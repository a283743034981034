"""The devices of this machine that vLLM can use: its GPUs, or its CPU.

GPUs are those that nvidia-smi or rocm-smi lists and the environment shows to this process.
"""

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from batchfile.engine.vllm.cpu import read_cpu
from batchfile.engine.vllm.preflight import is_cpu_build
from batchfile.errors import SettingsError

CUDA, HIP, ROCR = "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"
# Numbers GPUs as nvidia-smi does. By default, CUDA numbers the fastest first.
CUDA_ORDER, AS_LISTED = "CUDA_DEVICE_ORDER", "PCI_BUS_ID"
LIST_S_MAX = 30.0  # for the tool that lists GPUs
NVIDIA = (
    "nvidia-smi",
    "--query-gpu=index,uuid,name,memory.total,memory.free,mig.mode.current",
    "--format=csv,noheader,nounits",
)
AMD = ("rocm-smi", "--showproductname", "--showuniqueid", "--showmeminfo", "vram", "--json")
MIB = 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """`index`: its name in CUDA_VISIBLE_DEVICES or HIP_VISIBLE_DEVICES; of the CPU: its cores, with commas.

    `memory_bytes`, `free_bytes`: 0 if unknown. `uuid`: of a GPU; another name for it.
    """

    index: str
    kind: Literal["cuda", "rocm", "cpu"]
    name: str
    memory_bytes: int
    free_bytes: int
    uuid: str = ""


def visible_devices(environ: Mapping[str, str] = os.environ) -> list[Device]:
    """The GPUs; or the CPU if there are none, or vLLM is its build for CPUs.

    Raises: SettingsError if the environment names a GPU that the machine does not have.
    """
    if is_cpu_build():
        return [cpu_device()]
    if amd := amd_devices(_output_of(AMD)):
        behind = [replace(one, index=str(n)) for n, one in enumerate(shown(amd, ROCR, environ))]
        found = shown(behind, HIP if HIP in environ else CUDA, environ)
    else:
        found = shown(nvidia_devices(_output_of(NVIDIA)), CUDA, environ)
    return found or [cpu_device()]


def cpu_device() -> Device:
    cpu = read_cpu()
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # Within a container's limit. Only replicas are bound to cores; one engine chooses its threads itself.
    num = len(cpu.cores) if cpu.quota is None else max(1, int(cpu.quota))
    cores = ",".join(map(str, cpu.cores[:num]))
    free = total if cpu.memory_bytes is None else cpu.memory_bytes
    return Device(index=cores, kind="cpu", name=platform.machine(), memory_bytes=total, free_bytes=free)


def nvidia_devices(listed: str) -> list[Device]:
    """From the output of `NVIDIA`.

    A GPU that shares the system's memory has none of its own there, and of one in parts (MIG) a process gets only one.
    """
    found = []
    for line in listed.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 6:
            index, uuid, name, total, free, mig = fields
            is_known = total.isdigit() and free.isdigit() and mig != "Enabled"
            memory, unused = (int(total) * MIB, int(free) * MIB) if is_known else (0, 0)
            found.append(Device(index=index, kind="cuda", name=name, memory_bytes=memory, free_bytes=unused, uuid=uuid))
    return found


def amd_devices(listed: str) -> list[Device]:
    """From the output of `AMD`: an object with the properties of each card."""
    try:
        cards: dict[str, Any] = json.loads(listed or "{}")
        numbered = {int(key[4:]): card for key, card in cards.items() if key.startswith("card")}
    except ValueError:
        return []
    found = []
    for number, card in sorted(numbered.items()):
        total = int(card.get("VRAM Total Memory (B)", 0))
        free = max(0, total - int(card.get("VRAM Total Used Memory (B)", 0)))
        name = next((str(card[key]) for key in ("Card Series", "Card series", "Card Model") if key in card), "AMD GPU")
        uuid = f"GPU-{str(card.get('Unique ID', '')).removeprefix('0x')}"
        found.append(Device(index=str(number), kind="rocm", name=name, memory_bytes=total, free_bytes=free, uuid=uuid))
    return found


def shown(devices: Sequence[Device], variable: str, environ: Mapping[str, str]) -> list[Device]:
    """Those that the variable names, in its order; all if it is not set. Raises: SettingsError for an unknown one."""
    given = environ.get(variable)
    if given is None:
        return list(devices)
    names = [name.strip() for name in given.split(",") if name.strip()]
    if none := [name for name in names if name in {"-1", "NoDevFiles"}]:  # CUDA ignores it and what follows
        names = names[: names.index(none[0])]
    found: list[Device] = []
    for name in names:
        device = named(devices, name)
        if device is None and devices and not name.startswith("MIG-"):
            raise SettingsError(f"{variable}={given}: this machine has no GPU {name}; it has {listing(devices)}")
        # Without the tool that lists them, and of a part of a GPU (MIG), only the name is known.
        device = device or Device(index=name, kind="cuda", name="GPU", memory_bytes=0, free_bytes=0)
        found.append(replace(device, index=name if name == device.index else device.uuid))
        if found[-1] in found[:-1]:
            raise SettingsError(f"{variable}={given}: {name} is listed twice")
    return found


def named(devices: Sequence[Device], name: str) -> Device | None:
    """By its index, or its UUID or the beginning of that."""
    by_uuid = (one for one in devices if name.startswith("GPU-") and one.uuid.startswith(name))
    return next((one for one in devices if one.index == name), next(by_uuid, None))


def listing(devices: Sequence[Device]) -> str:
    """Their indexes, and the name of each model once."""
    names = dict.fromkeys(device.name for device in devices)
    return ", ".join(f"{', '.join(one.index for one in devices if one.name == name)} ({name})" for name in names)


def _output_of(command: Sequence[str]) -> str:
    try:
        # One GPU that does not answer makes the tool fail after it has listed the others.
        return subprocess.run(command, capture_output=True, text=True, timeout=LIST_S_MAX, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return ""  # no driver, so no GPUs
