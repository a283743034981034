"""Where set-up reads and writes."""

import os
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = ROOT / "constraints.txt"
CONSTRAINTS_CPU = ROOT / "constraints-cpu.txt"


def environment_dir() -> Path:
    """The virtual environment that this Python belongs to."""
    return Path(sys.prefix)


def packages_dir() -> Path:
    return Path(sysconfig.get_path("purelib"))


def scratch_dir() -> Path:
    """Where pip keeps its temporary files: on the environment's own disk, which is checked for space."""
    return environment_dir() / ".setup-tmp"


def models_dir() -> Path:
    cache = os.environ.get("BATCHFILE_CACHE") or "~/.cache/batchfile"
    return Path(cache).expanduser() / "models"
