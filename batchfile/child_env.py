"""The environment of a process of ours that reads what strangers write: without the secrets of this process."""

import os
from pathlib import Path

ROOT = str(Path(__file__).parents[1])  # where this package is imported from
_KEPT = ("PATH", "HOME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "PYTHONHOME")


def child_environment(**more: str) -> dict[str, str]:
    """With `python -P`, which reads no module of the working directory, such a process finds this package."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {**kept, "PYTHONPATH": python_path(), **more}


def python_path() -> str:
    return os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))
