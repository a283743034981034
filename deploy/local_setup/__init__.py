"""The parts of deploy/local.py. They use the standard library only, since they run before anything is installed."""

import sys

PYTHON_MIN = (3, 11)

# Before importing the other modules, whose syntax an older Python cannot parse.
if sys.version_info < PYTHON_MIN:
    raise SystemExit(
        "Set-up stopped: Python %d.%d is too old; 3.11 or newer is required. Recreate the virtual environment with a "  # noqa: UP031
        "newer one, for example `python3.12 -m venv --clear .venv`." % sys.version_info[:2]
    )
