"""Which replicas of a model fit on which devices, and what is said where none do."""

from dataclasses import replace

import pytest

from batchfile.errors import SettingsError
from batchfile.machine.devices import Device
from batchfile.machine.layout import Layout, Wanted, environments, plan_replicas
from batchfile.machine.model_memory import ModelMemory

GIB = 1024**3
MISTRAL = ModelMemory(14_500_000_000, 131_072, 32, 8, 32_768, 7_110_000_000)
LLAMA = ModelMemory(141_000_000_000, 327_680, 64, 8, 8_192, 69_500_000_000)
TWO_CORES = Device(index="0,1", kind="cpu", name="x86_64", memory_bytes=8 * GIB, free_bytes=8 * GIB)


def gpus(num: int, gib: int = 80) -> list[Device]:
    free = int(gib * GIB * 0.99)
    return [
        Device(index=str(n), kind="cuda", name=f"A100-{gib}", memory_bytes=gib * GIB, free_bytes=free)
        for n in range(num)
    ]


def filled(devices: list[Device], *numbers: int) -> list[Device]:
    return [replace(one, free_bytes=GIB) if n in numbers else one for n, one in enumerate(devices)]


def planned(
    devices: list[Device], memory: ModelMemory | None = MISTRAL, gpus: str = "all", size: int | None = None, **more: int
) -> Layout:
    return plan_replicas(devices, Wanted(gpus=gpus, tensor_parallel_size=size, **more), "the-model", memory)


def refusal(
    devices: list[Device], memory: ModelMemory | None = MISTRAL, gpus: str = "all", size: int | None = None, **more: int
) -> str:
    with pytest.raises(SettingsError) as caught:
        planned(devices, memory, gpus, size, **more)
    return str(caught.value)


def indexes(layout: Layout) -> list[str]:
    return ["".join(device.index for device in devices) for devices in layout.replicas]


MIXED = [*gpus(1, 24), *gpus(4)[1:]]


@pytest.mark.parametrize(
    ("num", "memory", "wanted", "replicas"),
    [
        (8, MISTRAL, {}, list("01234567")),
        (8, LLAMA, {}, ["01", "23", "45", "67"]),
        (3, LLAMA, {}, ["01"]),
        (8, LLAMA, {"size": 4}, ["0123", "4567"]),
        (8, LLAMA, {"pipeline_parallel_size": 2}, ["01", "23", "45", "67"]),
        (8, MISTRAL, {"replicas": 3}, ["0", "1", "2"]),
        (8, MISTRAL, {"gpus": "2"}, ["0", "1"]),
        (8, MISTRAL, {"gpus": "2,5-6"}, ["2", "5", "6"]),
        (8, MISTRAL, {"gpus": "3,"}, ["3"]),
        (8, LLAMA, {"gpus": "4-7"}, ["45", "67"]),
        (4, None, {}, list("0123")),
        (4, None, {"size": 2}, ["01", "23"]),
    ],
)
def test_every_gpu_gets_a_part_of_a_replica(num: int, memory: ModelMemory | None, wanted: dict, replicas: list) -> None:
    assert indexes(planned(gpus(num), memory, **wanted)) == replicas


def test_one_engine_on_all_visible_devices_needs_no_process_of_its_own() -> None:
    assert planned(gpus(1)).is_all
    assert planned(gpus(2), LLAMA).is_all
    assert not planned(gpus(2), MISTRAL).is_all
    assert not planned(gpus(2), MISTRAL, gpus="1").is_all


def test_a_few_requests_start_few_engines_unless_their_number_is_chosen() -> None:
    layout = planned(gpus(8))
    assert [len(layout.enough_for(num).replicas) for num in (0, 1, 16, 17, 127, 128, 10_000)] == [1, 1, 1, 2, 8, 8, 8]
    assert layout.enough_for(5).notes[1:] == ("1 of them is enough for 5 requests; --replicas starts more",)
    assert not layout.enough_for(5).is_all  # its process sees one GPU
    assert layout.enough_for(128) == layout
    chosen = planned(gpus(8), replicas=4)
    assert chosen.enough_for(1) == chosen


def test_the_choice_is_said_in_one_line_and_what_is_left_out_is_named() -> None:
    [chosen, unused] = planned(gpus(3), LLAMA).notes
    assert chosen == (
        "1 replica of 2 GPUs (A100-80), tensor_parallel_size 2: 131.3 GiB of weights, which leaves 9.9 GiB for KV cache"
    )
    assert unused == "not used: GPU 2 (A100-80)"
    assert planned(gpus(1)).notes == ()
    assert "the size of the-model is unknown" in planned(gpus(2), None).notes[0]
    assert planned(MIXED).notes == (
        "4 replicas of 1 GPU (A100-24, A100-80), tensor_parallel_size 1: 13.5 GiB of weights, which leaves at least "
        "6.7 GiB for KV cache",
    )


def test_a_gpu_that_another_process_fills_is_left_out_and_named() -> None:
    layout = planned(filled(gpus(4), 1))
    assert indexes(layout) == ["0", "2", "3"]
    assert layout.notes[1] == ("GPU 1 (A100-80) is left out: another process uses it, and 1.0 of its 80.0 GiB are free")
    assert indexes(planned(filled(gpus(4), 0, 1), gpus="2")) == ["2", "3"]


@pytest.mark.parametrize(
    ("devices", "memory", "wanted", "words"),
    [
        (gpus(4), LLAMA, {"gpus": "8"}, "gpus: 8 must be from 1 to 4, the number of usable GPUs"),
        (filled(gpus(4), 3), LLAMA, {"gpus": "4"}, "from 1 to 3, the number of usable GPUs; GPU 3 (A100-80) is left"),
        (gpus(2), LLAMA, {"gpus": "1-2"}, "gpus: 1-2: 2 is not a visible GPU of this machine; use all, a number"),
        (gpus(2), LLAMA, {"gpus": "1,1"}, "1 is listed twice"),
        (gpus(2), LLAMA, {"gpus": ","}, "names no GPU"),
        (filled(gpus(2), 1), LLAMA, {"gpus": "0-1"}, "GPU 1 (A100-80) is left out: another process uses it"),
        (filled(gpus(1), 0), LLAMA, {}, "gpu_memory_utilization is 0.9: end that process"),
        (gpus(8), LLAMA, {"size": 3}, "3 does not divide the 64 attention heads and 8 key-value heads of the-model"),
        (gpus(8), MISTRAL, {"gpus": "0"}, "gpus: 0 must be from 1 to 8, the number of usable GPUs; 0, is GPU 0 alone"),
        (
            gpus(8),
            MISTRAL,
            {"gpus": "8-9"},
            "8 is not a visible GPU of this machine; use all, a number, or some of 0, 1, 2, 3",
        ),
        (gpus(2), MISTRAL, {"gpus": ""}, "names no GPU"),
        (gpus(2), LLAMA, {"replicas": 2}, "2 replicas need 4 GPUs (tensor_parallel_size 2"),
        (gpus(2), MISTRAL, {"pipeline_parallel_size": 3}, "a replica needs 3 GPUs (tensor_parallel_size 1, pipeline"),
        (gpus(1), LLAMA, {}, "the GPU (A100-80) has 70.6 GiB for both"),
        (gpus(2, 24), LLAMA, {}, "each GPU (A100-24) has"),
        (MIXED, LLAMA, {}, "the smallest of the 4 GPUs (A100-24, A100-80) has 20.2 GiB for both"),
        (MIXED, LLAMA, {}, "use only the larger ones, gpus 1,2,3; use quantization fp8"),
        (MIXED[:2], replace(MISTRAL, weight_bytes=30_000_000_000), {"size": 1}, "use only the larger ones, gpus 1,; "),
        (gpus(2), LLAMA, {"size": 4}, "a replica needs 4 GPUs (tensor_parallel_size 4"),
        (gpus(1), LLAMA, {}, "the-model does not fit: it needs 131.3 GiB for weights and 5.0 GiB for a KV cache that"),
        (gpus(1), LLAMA, {}, "quantization fp8"),
        (filled(gpus(2), 1), LLAMA, {}, "or a smaller model; GPU 1 (A100-80) is left out: another process"),
        (gpus(1), LLAMA, {"size": 1}, "does not fit"),
        (gpus(1, 48), LLAMA, {}, "a checkpoint of 4 bits (AWQ, GPTQ)"),
        (gpus(1, 24), LLAMA, {}, ": use more or larger GPUs, or a smaller model"),
        (
            gpus(1, 24),
            replace(MISTRAL, context_length=131_072),
            {},
            "lower max_model_len to 54272; use",
        ),
        (
            [TWO_CORES],
            MISTRAL,
            {"gpus": "2"},
            "gpus: 2 cannot be used: nvidia-smi and rocm-smi list no GPU that is vis",
        ),
        ([TWO_CORES], MISTRAL, {"replicas": 3}, "3 replicas need 3 cores, and this process may use 2"),
    ],
)
def test_what_cannot_be_is_refused_with_what_there_is(
    devices: list[Device], memory: ModelMemory, wanted: dict, words: str
) -> None:
    assert words in refusal(devices, memory, **wanted)


def test_replicas_on_a_cpu_share_its_cores_unless_the_user_says_how() -> None:
    replicas = planned([TWO_CORES], replicas=2).replicas
    assert environments(replicas, {}) == [{"VLLM_CPU_OMP_THREADS_BIND": n} for n in "01"]
    assert environments(replicas, {"VLLM_CPU_OMP_THREADS_BIND": "all"}) == [{}, {}]
    assert environments(planned([TWO_CORES]).replicas, {}) == [{}]


def test_replicas_on_gpus_see_their_own_alone() -> None:
    order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert environments(planned(gpus(4), LLAMA).replicas, {}) == [
        {"CUDA_VISIBLE_DEVICES": "0,1", **order},
        {"CUDA_VISIBLE_DEVICES": "2,3", **order},
    ]
    own = {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    assert environments([gpus(1)], own) == [{"CUDA_VISIBLE_DEVICES": "0", **own}]
    amd = [replace(one, kind="rocm") for one in gpus(1)]
    assert environments([amd, ()], {}) == [{"CUDA_VISIBLE_DEVICES": "0", "HIP_VISIBLE_DEVICES": "0"}, {}]
