"""Builds commands that start this package's modules: `runners` in a checkout, `batchfile.runners` from the wheel."""

import os
import sys

from batchfile.child_env import python_path

PACKAGE = __package__


def command(*arguments: str, module: str = "") -> list[str]:
    """The command for a module of this package, or the package itself. -P: never import from the working directory."""
    return [sys.executable, "-P", "-m", f"{PACKAGE}.{module}" if module else PACKAGE, *arguments]


def variables() -> dict[str, str]:
    """The variables with which `command` finds the same code. From the wheel, none are needed."""
    is_checkout = "." not in PACKAGE
    return {"PYTHONPATH": python_path()} if is_checkout else {}


def environment() -> dict[str, str]:
    return {**os.environ, **variables()}
