"""The variables of a container: what files say, what is there, and what shall be. Their values are never told.

An update replaces all of them, so what shall be is whole. Nothing is taken away: what no file names is somebody's own.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

SECRET = re.compile(r"\{\{\s*RUNPOD_SECRET_\w+\s*\}\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Env:
    """`values`: what shall be. Names: what is `changed`, what is `kept` though the file differs, `extra` in no file."""

    values: Mapping[str, str] = field(default_factory=dict)
    changed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()


def compare_env(wanted: Mapping[str, str], found: Mapping[str, str]) -> Env:
    """Where a file names a secret of RunPod's and a value is there, somebody has set that by hand: it is kept."""
    differing = [name for name, value in wanted.items() if found.get(name) != value]
    kept = [name for name in differing if name in found and is_secret(wanted[name]) and not is_secret(found[name])]
    changed = [name for name in differing if name not in kept]
    return Env(
        values={**found, **{name: wanted[name] for name in changed}},
        changed=tuple(changed),
        kept=tuple(kept),
        extra=tuple(name for name in found if name not in wanted),
    )


def is_secret(value: str) -> bool:
    return SECRET.fullmatch(value) is not None
