"""The steps of set-up in order, and the check whether there is anything to do.

Includes what only the tests need: older major versions of an official client, and packages of the Node tests.
"""

import contextlib
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from .install import Installer, InstallPlan, forget_incomplete, vllm_version
from .machine import environment_problem, problem_with, this_machine
from .model import MODEL_NAME, fetch_model, has_model
from .places import (
    CONSTRAINTS,
    CONSTRAINTS_CPU,
    ROOT,
    SetupError,
    environment_dir,
    locked,
    models_dir,
    packages_dir,
    scratch_dir,
)
from .process import require_space, run
from .progress import SetupProgress, bytes_in, say

# Older major versions of an official client, each in its own folder, next to the environment's packages.
SDK_MAJORS = {"anthropic-0": ("anthropic==0.84.0", "distro==1.9.0"), "anthropic-1": ("anthropic==1.17.0",)}
NODE_FOLDERS = ("ts", "tests/node-consumer", "tests/sdk-node", "tests/sdk-node-openai", "tests/s3rver", "tests/browser")
SDK_MARK = ".complete"
STAMP_NAME = "batchfile-setup.json"
BLOCKS = 1.2  # disk usage relative to file sizes, because many files are small


def sdk_dir(name: str) -> Path:
    return ROOT / ".cache" / "sdks" / name


def has_sdk_major(name: str) -> bool:
    mark = sdk_dir(name) / SDK_MARK
    return mark.is_file() and mark.read_text() == " ".join(SDK_MAJORS[name])


def has_sdk_majors() -> bool:
    return all(has_sdk_major(name) for name in SDK_MAJORS)


def install_sdk_majors(installer: Installer) -> None:
    for name, packages in SDK_MAJORS.items():
        if has_sdk_major(name):
            continue
        shutil.rmtree(sdk_dir(name), ignore_errors=True)
        installer.pip("install", "--no-deps", "--target", str(sdk_dir(name)), *packages)
        (sdk_dir(name) / SDK_MARK).write_text(" ".join(packages))


def has_node_tools() -> bool:
    return all((ROOT / folder / "node_modules" / ".package-lock.json").exists() for folder in NODE_FOLDERS)


def install_node_tools(installer: Installer) -> str:
    """Install what builds the Node client and its tests. Without Node, only those tests are skipped."""
    npm = shutil.which("npm")
    if npm is None:
        return "skipped, because npm is not on PATH; the tests of ts/ and of Node clients need Node 20 or newer"
    for folder in NODE_FOLDERS:
        run(
            [npm, "--prefix", folder, "ci", "--no-audit", "--no-fund"],
            installer.progress,
            disk=ROOT,
            hint="Check that npm reaches a registry, then run the same command again.",
            holds=[installer.lock],
        )
    return "done"


def stamp_path() -> Path:
    """Written last and removed first: while it exists, the environment is complete."""
    return environment_dir() / STAMP_NAME


def read_stamp() -> dict[str, Any]:
    """Its `recipe`, `vllm` and `extras`; empty if it does not exist."""
    with contextlib.suppress(OSError, ValueError):
        stamp = json.loads(stamp_path().read_text())
        return stamp if isinstance(stamp, dict) else {}
    return {}


def recipe_digest(*, is_newest: bool) -> str:
    """A digest of the declared dependencies, the constraints, this recipe and the interpreter."""
    digest = hashlib.sha256(f"{sys.version} {is_newest}".encode())
    locks = [ROOT / folder / "package-lock.json" for folder in NODE_FOLDERS]
    constraints = [] if is_newest else [CONSTRAINTS, CONSTRAINTS_CPU]
    recipe = sorted(Path(__file__).parent.glob("*.py"))
    for path in (ROOT / "pyproject.toml", *constraints, *locks, *recipe):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_up_to_date(extras: tuple[str, ...], *, is_newest: bool) -> bool:
    stamp = read_stamp()
    return (
        stamp.get("recipe") == recipe_digest(is_newest=is_newest)
        and stamp.get("vllm") == vllm_version() is not None
        and set(extras) <= set(stamp.get("extras", ()))
        and has_model()
        and ("test" not in extras or (has_sdk_majors() and (has_node_tools() or shutil.which("npm") is None)))
    )


def check_machine(*, is_service: bool) -> bool:
    """Returns whether there is a GPU. Raises: SetupError if set-up cannot work on this machine."""
    machine = this_machine()
    problem = problem_with(machine, is_service=is_service) or environment_problem()
    if problem:
        raise SetupError(problem)
    return machine.has_gpu


def set_up(extras: tuple[str, ...], *, is_newest: bool = False, is_service: bool = False) -> None:
    if is_up_to_date(extras, is_newest=is_newest):
        return
    has_gpu = check_machine(is_service=is_service)
    with locked(models_dir(), "models"):
        pass  # checks that it is writable, before anything is downloaded
    with locked(environment_dir(), "environment") as lock:
        if is_up_to_date(extras, is_newest=is_newest):
            return  # done by the set-up that this one waited for
        stamp = read_stamp()
        plan = InstallPlan(extras=extras, has_gpu=has_gpu, is_newest=is_newest)
        try:
            work(plan, Installer(progress=SetupProgress(), lock=lock), was_interrupted=not stamp)
        finally:
            shutil.rmtree(scratch_dir(), ignore_errors=True)
        made = {"recipe": recipe_digest(is_newest=is_newest), "vllm": vllm_version(), "extras": sorted(extras)}
        stamp_path().write_text(json.dumps(made) + "\n")


def require_space_for(plan: InstallPlan) -> None:
    """Checks for the space of missing packages. Resolving may download too, if an index does not serve metadata."""
    sizes = plan.sizes()
    needed = sizes.fetched + int(BLOCKS * (sizes.installed - min(bytes_in(packages_dir()), sizes.installed)))
    require_space(environment_dir(), needed, "Installing vLLM")


def resolve(into: list[str], installer: Installer, plan: InstallPlan) -> str:
    into += installer.resolve(plan)
    return f"{len(into)} to install" if into else "all installed"


def work(plan: InstallPlan, installer: Installer, *, was_interrupted: bool) -> None:
    say("Setting up batchfile (the first time takes a few minutes, later runs start at once):")
    stamp_path().unlink(missing_ok=True)
    shutil.rmtree(scratch_dir(), ignore_errors=True)
    step = installer.progress.step
    if was_interrupted:
        for name in forget_incomplete(packages_dir()):
            say(f"  {name} was incomplete and is installed again")
    kind = "vLLM for NVIDIA GPUs" if plan.has_gpu else "vLLM for CPUs"
    require_space_for(plan)
    exact: list[str] = []
    step(f"versions of {kind} and the dependencies of batchfile", lambda: resolve(exact, installer, plan))
    if exact:
        step(f"{len(exact)} package{'' if len(exact) == 1 else 's'}", lambda: installer.install(plan, exact))
    step("batchfile", lambda: installer.install_project(plan))
    step("packages that do not work on this machine", lambda: installer.remove_broken(plan))
    step(f"model {MODEL_NAME}", lambda: fetch_model(installer, plan))
    if "test" in plan.extras:
        step("older major versions of the official clients", lambda: install_sdk_majors(installer))
        step("packages of the Node tests", lambda: install_node_tools(installer))
