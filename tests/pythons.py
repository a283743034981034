"""Lint, types and the fast tests on the oldest and the newest Python that is installed here: `just check-pythons`.

Each has an environment of its own in `.cache/pythons`, without vLLM, made once for each change of the constraints.
Where only one is found, it is checked alone.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".cache" / "pythons"
MINORS = range(11, 15)
EXTRAS = "s3,parquet,api,prices,fleet,ray,test"
OF_VLLM = ("cloudpickle", "tokenizers")  # of its dependencies, those that are imported here with their types
STAMP = "batchfile-extras"

Version = tuple[int, int]


def candidates() -> Iterator[str]:
    """On PATH, and where pyenv and uv keep theirs."""
    homes = [os.environ.get("PYENV_ROOT", "~/.pyenv") + "/versions", "~/.local/share/uv/python"]
    folders = [folder for home in homes for folder in sorted(Path(home).expanduser().glob("*/bin"))]
    for minor in MINORS:
        yield from filter(None, [shutil.which(f"python3.{minor}")])
        yield from (str(path) for folder in folders if (path := folder / f"python3.{minor}").exists())


def version_of(python: str) -> Version | None:
    """None where it does not run: a name on PATH may lead nowhere."""
    done = subprocess.run([python, "-c", "import sys, venv; print(sys.version)"], capture_output=True, text=True)
    found = re.match(r"(\d+)\.(\d+)\.", done.stdout)
    return (int(found[1]), int(found[2])) if found and done.returncode == 0 else None


def environment(python: str, version: Version) -> Path:
    """The Python of an environment that has what the checks need."""
    folder = CACHE / f"{version[0]}.{version[1]}"
    inputs = [ROOT / "pyproject.toml", ROOT / "constraints.txt"]
    wanted = hashlib.sha256(f"{EXTRAS} {OF_VLLM}".encode() + b"".join(path.read_bytes() for path in inputs)).hexdigest()
    stamp = folder / STAMP
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
        pip = [folder / "bin" / "python", "-m", "pip", "install", "-q", "-c", "constraints.txt"]
        subprocess.run([*pip, "-e", f".[{EXTRAS}]", *OF_VLLM], cwd=ROOT, check=True)
        stamp.write_text(wanted)
    return folder / "bin" / "python"


def main() -> int:
    """`python tests/pythons.py JUST`: runs its recipe `check` with each."""
    found: dict[Version, str] = {}
    for python in candidates():
        version = version_of(python)
        if version is not None:
            found.setdefault(version, python)
    if not found:
        print(f"no Python 3.{MINORS[0]} to 3.{MINORS[-1]} was found")
        return 1
    for version in sorted({min(found), max(found)}):
        print(f"Python {version[0]}.{version[1]}, {found[version]}", flush=True)
        chosen = environment(found[version], version)
        done = subprocess.run([sys.argv[1], f"python={chosen}", "check"], cwd=ROOT)
        if done.returncode != 0:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
