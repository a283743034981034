"""What runs in production is bounded on both sides: a new major version is looked at before it is used."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = [lines for extra, lines in PROJECT["optional-dependencies"].items() if extra != "test"]
ALL = [Requirement(line) for lines in (PROJECT["dependencies"], *EXTRAS) for line in lines]


@pytest.mark.parametrize("requirement", ALL, ids=lambda requirement: requirement.name)
def test_a_dependency_has_a_lowest_and_a_highest_version(requirement: Requirement) -> None:
    operators = {item.operator for item in requirement.specifier}
    assert operators in ({">=", "<"}, {"=="}), str(requirement)
    assert not requirement.url, "from an index, where it can be audited"


@pytest.mark.parametrize("requirement", ALL, ids=lambda requirement: requirement.name)
def test_what_is_installed_here_is_within_these_bounds(requirement: Requirement) -> None:
    try:
        assert requirement.specifier.contains(version(requirement.name), prereleases=True)
    except PackageNotFoundError:
        pytest.skip("an extra that is not installed here")


def test_the_api_runs_in_its_container_as_nobody_in_particular() -> None:
    text = (ROOT / "containers" / "api" / "Dockerfile").read_text()
    users = re.findall(r"^USER\s+(\S+)", text, re.MULTILINE)
    assert users, "as whom it runs"
    assert users[-1].partition(":")[0] not in {"root", "0"}
