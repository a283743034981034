"""How this package starts its own modules: as `runners` in a checkout, as `batchfile.runners` from the wheel."""

import os
import sys

from batchfile.child_env import python_path

PACKAGE = __package__


def command(*arguments: str, module: str = "") -> list[str]:
    """Of a module of this package, or of the package itself. -P: nothing is imported from the working directory."""
    return [sys.executable, "-P", "-m", f"{PACKAGE}.{module}" if module else PACKAGE, *arguments]


def environment() -> dict[str, str]:
    """This process's, with which `command` finds the same code. From the wheel it is where Python looks anyway."""
    is_checkout = "." not in PACKAGE
    return {**os.environ, "PYTHONPATH": python_path()} if is_checkout else dict(os.environ)
