"""Lists the installed distributions as constraints for further installs.

`--check FILE`: fails if one of these has changed. `--lacks FILE`: prints the lines of a constraints file whose
distributions are not installed. Ignores packages of the operating system outside this Python's own folders.
"""

import importlib.metadata
import re
import sys
import sysconfig
from pathlib import Path


def installed(folders: list[str]) -> set[str]:
    """The installed versions. If there are two of one name, the first, which an import finds."""
    found: dict[str, str] = {}
    for one in importlib.metadata.distributions(path=folders):
        if one.metadata["Name"]:
            found.setdefault(re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower(), one.version)
    return {f"{name}=={version}" for name, version in found.items()}


def lacking(constraints: str, here: set[str]) -> list[str]:
    names = {one.partition("==")[0] for one in here}
    lines = [line.strip() for line in constraints.splitlines()]
    return [line for line in lines if line and not line.startswith("#") and line.partition("==")[0] not in names]


def main(arguments: list[str]) -> int:
    here = installed(sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    if arguments[:1] == ["--lacks"]:
        sys.stdout.write("".join(f"{line}\n" for line in lacking(Path(arguments[1]).read_text(), here)))
        return 0
    if arguments[:1] != ["--check"]:
        sys.stdout.write("".join(f"{line}\n" for line in sorted(here)))
        return 0
    moved = sorted(set(Path(arguments[1]).read_text().split()) - here)
    if moved:
        sys.stderr.write(f"the install changed packages of the base image: {', '.join(moved)}\n")
    return 1 if moved else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
