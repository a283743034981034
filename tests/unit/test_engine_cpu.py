"""Which data type and how many cores vLLM gets on a processor, and what is read of the machine for that."""

import os
from pathlib import Path

import pytest

from batchfile.engine.vllm.cpu import (
    GIB,
    KV_CACHE,
    Cpu,
    CpuChoice,
    ModelFacts,
    check_usable,
    choose,
    core_shares,
    flags_of,
    kv_cache_gib,
    read_cpu,
)
from batchfile.errors import SettingsError

AVX2 = frozenset({"sse4_2", "avx", "avx2", "f16c", "fma"})
CASCADE_LAKE = AVX2 | {"avx512f", "avx512_vnni"}
ZEN4 = CASCADE_LAKE | {"avx512_bf16"}
SAPPHIRE_RAPIDS = ZEN4 | {"amx_bf16", "avx512_fp16"}
SMALL = ModelFacts(dtype="bfloat16", weight_bytes=GIB)


def cpu(
    flags: frozenset[str] | None, machine: str = "x86_64", num: int = 2, quota: float | None = None, gib: float = 100
) -> Cpu:
    return Cpu(machine=machine, flags=flags, cores=tuple(range(num)), quota=quota, memory_bytes=int(gib * GIB))


def chosen(
    found: Cpu,
    model: ModelFacts = SMALL,
    dtype: str = "auto",
    is_embedding: bool = False,
    environ: dict[str, str] | None = None,
) -> CpuChoice:
    return choose(found, model, dtype=dtype, is_embedding=is_embedding, environ=environ or {}, kv_gib=2)


@pytest.mark.parametrize(
    ("machine", "flags", "stored", "dtype"),
    [
        ("x86_64", AVX2, "bfloat16", "float32"),
        ("x86_64", AVX2, "float16", "float32"),
        ("x86_64", AVX2, "float32", "float32"),
        ("x86_64", AVX2, None, "float32"),
        ("x86_64", CASCADE_LAKE, "bfloat16", "float32"),
        ("x86_64", ZEN4, "bfloat16", "auto"),
        ("x86_64", ZEN4, "float32", "auto"),
        ("x86_64", ZEN4, "float16", "float32"),
        ("x86_64", SAPPHIRE_RAPIDS, "float16", "auto"),
        ("AMD64", AVX2, "bfloat16", "float32"),
        ("aarch64", frozenset({"asimd"}), "bfloat16", "float32"),
        ("aarch64", frozenset({"asimd", "bf16", "asimdhp"}), "bfloat16", "auto"),
        ("arm64", frozenset({"asimd", "asimdhp"}), "bfloat16", "float32"),
        ("ppc64le", frozenset({"altivec"}), "bfloat16", "auto"),
        ("x86_64", None, "bfloat16", "auto"),
    ],
)
def test_float32_where_the_cpu_has_no_instructions_for_the_models_type(
    machine: str, flags: frozenset[str] | None, stored: str | None, dtype: str
) -> None:
    assert chosen(cpu(flags, machine), ModelFacts(dtype=stored)).dtype == dtype


def test_the_line_names_the_type_the_reason_and_the_cores() -> None:
    assert chosen(cpu(AVX2)).note == (
        "vLLM computes on the CPU with float32 (the CPU has no bfloat16 instructions), on all 2 cores"
    )
    assert chosen(cpu(ZEN4, num=1)).note == "vLLM computes on the CPU with bfloat16, on 1 core"


def test_a_users_own_type_is_kept_and_called_slow_where_it_is() -> None:
    kept = chosen(cpu(AVX2), dtype="bfloat16")
    assert kept.dtype == "bfloat16"
    assert "bfloat16 as set, which this CPU emulates" in kept.note
    assert "emulates" not in chosen(cpu(ZEN4), dtype="bfloat16").note
    assert "emulates" in chosen(cpu(ZEN4), dtype="half").note


def test_a_quantized_model_keeps_the_type_that_its_kernels_want() -> None:
    assert chosen(cpu(AVX2), ModelFacts(dtype="bfloat16", is_quantized=True)).dtype == "auto"


def test_an_embedding_model_in_float32_would_become_float16() -> None:
    assert chosen(cpu(ZEN4), ModelFacts(dtype="float32"), is_embedding=True).dtype == "float32"


@pytest.mark.parametrize(
    ("found", "environ", "set_to"),
    [
        (cpu(AVX2), {}, {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}),
        (cpu(AVX2), {"VLLM_CPU_NUM_OF_RESERVED_CPU": "1"}, {}),
        (cpu(AVX2), {"VLLM_CPU_OMP_THREADS_BIND": "0"}, {}),
        (cpu(AVX2), {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}, {}),
        (cpu(AVX2), {"OMP_NUM_THREADS": "1"}, {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}),
        (cpu(AVX2, num=64, quota=2.5), {}, {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "2"}),
        (cpu(AVX2, num=64, quota=0.5), {}, {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}),
        (cpu(AVX2, num=4, quota=8.0), {}, {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}),
        (cpu(AVX2, num=64, quota=2.0), {"VLLM_CPU_OMP_THREADS_BIND": "0-3"}, {}),
        (cpu(AVX2, num=64, quota=2.0), {"VLLM_CPU_NUM_OF_RESERVED_CPU": "60"}, {}),
    ],
)
def test_all_cores_that_this_process_may_use_unless_the_user_says_otherwise(
    found: Cpu, environ: dict[str, str], set_to: dict[str, str]
) -> None:
    assert chosen(found, environ=environ).environ == set_to


def test_too_little_memory_is_said_before_loading() -> None:
    with pytest.raises(SettingsError, match=r"needs 4\.5 GiB .* 4\.0 GiB are available: .*VLLM_CPU_KVCACHE_SPACE=1"):
        chosen(cpu(ZEN4, gib=4))


def test_less_kv_cache_is_advised_only_where_there_is_more_than_the_least() -> None:
    facts = ModelFacts(dtype="bfloat16", weight_bytes=GIB)
    with pytest.raises(SettingsError) as told:
        choose(cpu(ZEN4, gib=2), facts, dtype="auto", is_embedding=False, environ={}, kv_gib=1)
    assert str(told.value).endswith("raise the container's limit, or use a smaller model")


def test_where_float32_does_not_fit_the_smaller_type_is_kept_and_said_to_be_slow() -> None:
    small = chosen(cpu(AVX2, gib=5), SMALL)
    assert small.dtype == "auto"
    assert "emulates slowly (float32 would need 5.5 GiB)" in small.note


def test_a_cpu_that_vllm_cannot_use_is_refused() -> None:
    with pytest.raises(SettingsError, match="needs AVX2 instructions"):
        check_usable(cpu(frozenset({"sse4_2", "avx"})))
    for usable in (cpu(AVX2), cpu(None), cpu(frozenset(), machine="riscv64")):
        check_usable(usable)


def test_engines_on_one_machine_get_cores_of_their_own() -> None:
    assert core_shares([0, 1, 2, 3, 5], 2) == ["0,1", "2,3,5"]
    assert core_shares([0, 1], 1) == [None]
    assert core_shares([0], 2) == [None, None]


def test_the_flags_of_the_first_processor() -> None:
    assert flags_of("processor\t: 0\nflags\t\t: fpu avx2\n\nprocessor: 1\nflags: none\n") == {"fpu", "avx2"}
    assert flags_of("processor\t: 0\nFeatures\t: fp asimd bf16\n") == {"fp", "asimd", "bf16"}
    assert flags_of("processor: 0\n") is None


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_tightest_limit_of_all_groups_counts_and_cached_files_are_free(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/meminfo": "MemTotal: 99 kB\nMemAvailable:   8388608 kB\n",
            "proc/self/cgroup": "0::/pod/box\n",
            "sys/fs/cgroup/pod/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/pod/box/cpu.max": "max 100000\n",
            "sys/fs/cgroup/pod/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/pod/memory.current": f"{3 * GIB}\n",
            "sys/fs/cgroup/pod/memory.stat": f"anon 5\ninactive_file {GIB}\nactive_file {GIB}\n",
            "sys/fs/cgroup/pod/box/memory.max": "max\n",
        },
    )
    found = read_cpu(tmp_path)
    assert found.quota == 1.5
    assert found.memory_bytes == 3 * GIB


def test_the_limits_of_the_first_kind_of_cgroup(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
        },
    )
    found = read_cpu(tmp_path)
    assert found.quota == 2.0
    assert found.memory_bytes == GIB


def test_two_threads_of_one_core_are_one(tmp_path: Path) -> None:
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    same = ",".join(map(str, allowed))
    write(tmp_path, {f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": f"{same}\n" for n in allowed})
    assert read_cpu(tmp_path).cores == (allowed[0],)


def test_a_machine_that_tells_nothing_limits_nothing(tmp_path: Path) -> None:
    found = read_cpu(tmp_path)
    assert (found.flags, found.quota, found.memory_bytes) == (None, None, None)
    assert found.cores


@pytest.mark.parametrize(("text", "gib"), [("", 0.0), ("2", 2.0), ("12", 12.0)])
def test_the_kv_cache_is_a_whole_number_of_gib(text: str, gib: float) -> None:
    assert kv_cache_gib({KV_CACHE: text}) == gib


@pytest.mark.parametrize("text", ["0.5", "-1", "two", "1 GiB"])
def test_a_kv_cache_that_vllm_cannot_read_is_named(text: str) -> None:
    with pytest.raises(SettingsError, match=r"VLLM_CPU_KVCACHE_SPACE=.* is not a whole number of GiB"):
        kv_cache_gib({KV_CACHE: text})
