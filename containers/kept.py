"""What is installed, a line each: the constraints under which more is installed. `--check FILE`: is it all still so?"""

import importlib.metadata
import sys
from pathlib import Path


def installed() -> set[str]:
    found = ((one.metadata["Name"], one.version) for one in importlib.metadata.distributions())
    return {f"{name}=={version}" for name, version in found if name}


def main(arguments: list[str]) -> int:
    if arguments[:1] != ["--check"]:
        sys.stdout.write("".join(f"{line}\n" for line in sorted(installed())))
        return 0
    moved = sorted(set(Path(arguments[1]).read_text().split()) - installed())
    if moved:
        sys.stderr.write(f"these were moved, and must not be: {', '.join(moved)}\n")
    return 1 if moved else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
