"""How this package starts its own modules: as `runners` in a checkout, as `batchfile.runners` from the wheel."""

import os
import sys
from pathlib import Path

PACKAGE = __package__
_IS_CHECKOUT = "." not in PACKAGE
_ROOT = str(Path(__file__).resolve().parents[1])


def command(*arguments: str, module: str = "") -> list[str]:
    """Of a module of this package, or of the package itself. -P: nothing is imported from the working directory."""
    return [sys.executable, "-P", "-m", f"{PACKAGE}.{module}" if module else PACKAGE, *arguments]


def environment() -> dict[str, str]:
    """This process's, with which `command` finds the same code. From the wheel it is where Python looks anyway."""
    if not _IS_CHECKOUT:
        return dict(os.environ)
    paths = (_ROOT, os.environ.get("PYTHONPATH"))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
