"""Which GPUs a machine has, and which of them the environment shows."""

import json
from pathlib import Path

import pytest

from batchfile.errors import SettingsError
from batchfile.machine import devices
from batchfile.machine.devices import MIB, Device, amd_devices, cpu_device, nvidia_devices, shown

NVIDIA = """\
0, GPU-8f1c0aaa-1, NVIDIA A100-SXM4-80GB, 81920, 81037, Disabled
1, GPU-77d2bbbb-2, NVIDIA A100-SXM4-80GB, 81920, 1200, Disabled
2, GPU-00ee0ccc-3, NVIDIA GB10, [N/A], [N/A], [N/A]
"""
AMD = {
    "card1": {"Card Series": "AMD Instinct MI300X", "VRAM Total Memory (B)": "206", "VRAM Total Used Memory (B)": "6"},
    "card0": {"Unique ID": "0xabcd", "VRAM Total Memory (B)": "206"},
    "system": {"Driver version": "6.12"},
}


def test_the_memory_of_nvidia_gpus_is_read() -> None:
    first, second, shared = nvidia_devices(NVIDIA)
    assert (first.index, first.kind, first.memory_bytes, first.free_bytes) == ("0", "cuda", 81920 * MIB, 81037 * MIB)
    assert second.free_bytes == 1200 * MIB
    assert (shared.memory_bytes, shared.free_bytes) == (0, 0)
    of_parts = "0, GPU-1, NVIDIA A100-SXM4-80GB, 81920, 81037, Enabled"
    hidden = "0, GPU-1, NVIDIA A100-SXM4-80GB, 81920, [Insufficient Permissions], Disabled"
    for line in (of_parts, hidden):
        assert [(one.memory_bytes, one.free_bytes) for one in nvidia_devices(line)] == [(0, 0)]
    assert nvidia_devices("No devices were found") == nvidia_devices("") == []


def test_the_memory_of_amd_gpus_is_read_in_the_order_of_their_cards() -> None:
    first, second = amd_devices(json.dumps(AMD))
    assert (first.index, first.name, first.uuid, first.free_bytes) == ("0", "AMD GPU", "GPU-abcd", 206)
    assert (second.index, second.name, second.free_bytes) == ("1", "AMD Instinct MI300X", 200)
    assert amd_devices("") == amd_devices("WARNING: no card") == []


@pytest.mark.parametrize(
    ("value", "indexes"),
    [
        (None, ["0", "1", "2"]),
        ("2, 0", ["2", "0"]),
        ("GPU-77d2,GPU-8f1c0aaa-1", ["GPU-77d2bbbb-2", "GPU-8f1c0aaa-1"]),
        ("1,-1,0", ["1"]),
        ("MIG-1a,0", ["MIG-1a", "0"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
    ],
)
def test_only_the_gpus_that_are_shown_are_used(value: str | None, indexes: list[str]) -> None:
    environ = {} if value is None else {"CUDA_VISIBLE_DEVICES": value}
    assert [device.index for device in shown(nvidia_devices(NVIDIA), "CUDA_VISIBLE_DEVICES", environ)] == indexes


@pytest.mark.parametrize(
    ("tool", "output", "environ", "kind", "indexes"),
    [
        ("nvidia-smi", NVIDIA, {}, "cuda", ["0", "1", "2"]),
        ("nvidia-smi", NVIDIA, {"CUDA_VISIBLE_DEVICES": "1"}, "cuda", ["1"]),
        ("rocm-smi", json.dumps(AMD), {}, "rocm", ["0", "1"]),
        ("rocm-smi", json.dumps(AMD), {"HIP_VISIBLE_DEVICES": "1"}, "rocm", ["1"]),
        ("rocm-smi", json.dumps(AMD), {"CUDA_VISIBLE_DEVICES": "1"}, "rocm", ["1"]),
        ("rocm-smi", json.dumps(AMD), {"ROCR_VISIBLE_DEVICES": "1"}, "rocm", ["0"]),  # numbered anew behind it
        ("no-tool", "", {}, "cpu", [devices.cpu_device().index]),
        ("nvidia-smi", NVIDIA, {"CUDA_VISIBLE_DEVICES": ""}, "cpu", [devices.cpu_device().index]),
    ],
)
def test_the_tools_of_both_makers_are_asked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tool: str,
    output: str,
    environ: dict[str, str],
    kind: str,
    indexes: list[str],
) -> None:
    (tmp_path / "listed").write_text(output)
    # It fails after the list, as with a GPU that does not answer.
    (tmp_path / tool).write_text(f"#!/bin/sh\n/bin/cat {tmp_path}/listed\nexit 15\n")
    (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(devices, "is_cpu_build", lambda: False)
    found = devices.visible_devices(environ)
    assert [device.index for device in found] == indexes
    assert {device.kind for device in found} == {kind}


def test_a_gpu_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(
        SettingsError, match=r"CUDA_VISIBLE_DEVICES=0,8: this machine has no GPU 8; it has 0, 1 \(NVIDIA"
    ):
        shown(nvidia_devices(NVIDIA), "CUDA_VISIBLE_DEVICES", {"CUDA_VISIBLE_DEVICES": "0,8"})
    for twice in ("0,0", "1,GPU-77d2,GPU-77d2bbbb-2"):
        with pytest.raises(SettingsError, match=f"CUDA_VISIBLE_DEVICES={twice}: .* is listed twice"):
            shown(nvidia_devices(NVIDIA), "CUDA_VISIBLE_DEVICES", {"CUDA_VISIBLE_DEVICES": twice})


def test_without_a_tool_that_lists_gpus_those_of_the_variable_are_used() -> None:
    found = shown([], "CUDA_VISIBLE_DEVICES", {"CUDA_VISIBLE_DEVICES": "2, 5"})
    assert found == [Device(index=n, kind="cuda", name="GPU", memory_bytes=0, free_bytes=0) for n in "25"]


def test_the_cpu_is_one_device_with_its_cores() -> None:
    device = cpu_device()
    assert device.kind == "cpu"
    assert device.index
    assert 0 < device.free_bytes <= device.memory_bytes
