"""The parts of deploy/local.py. They use the standard library only, since they run before anything is installed."""

import sys

PYTHON_MIN = (3, 11)

# Before the other modules, which an older Python cannot even read.
if sys.version_info < PYTHON_MIN:
    raise SystemExit(
        "Set-up stopped: Python %d.%d is too old: 3.11 or newer is needed. Make the virtual environment again with a "  # noqa: UP031
        "newer one, for example `python3.12 -m venv --clear .venv`." % sys.version_info[:2]
    )
