"""Which batch an output stands for, and whether a command still asks for the same. Kept in the batch's metadata.

A batch is found by its output's path; it is guarded by the input's digest, the engine, the model and what changes the
answers. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from batchfile.errors import OutputTaken

STDOUT = "-"  # as an output
_PREFIX = "run."
SHA256 = "run.sha256"
STAMP = "run.stamp"  # the input file as it was last seen; equal means untouched
INPUT = "run.input"
OUTPUT = "run.output"
REPLACES = "run.replaces"  # the batch whose receipt was at the output when this one was made
LINKED = "run.linked"  # the key of the object by which the store refers to the input file itself
REUSED = "run.reused"  # how many results were taken over when this one was made
REUSED_FROM = "run.reused_from"  # from which batch
ENGINE_VERSION = "run.engine_version"

_NAMES = {
    "sha256": "the input",
    "engine": "the engine",
    "model": "the model",
    "stage": "the stage",
    "limit": "--limit",
    "max_tokens": "the default max_tokens",
    "temperature": "the default temperature",
}
_SHOWN_MAX = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What makes a run that run; all text, empty where not given. `sha256` is of the input as it was given."""

    sha256: str
    engine: str
    model: str
    stage: str
    limit: str
    max_tokens: str
    temperature: str

    def to_metadata(self) -> dict[str, str]:
        return {_PREFIX + field.name: getattr(self, field.name) for field in fields(self)}


def is_same_but_for_input(metadata: Mapping[str, str], wanted: Identity) -> bool:
    return not changes(metadata, replace(wanted, sha256=metadata.get(SHA256, "")))


def changes(metadata: Mapping[str, str], wanted: Identity) -> list[str]:
    """What differs from the run that `metadata` tells of, in words."""
    found = []
    for name, value in wanted.to_metadata().items():
        was = metadata.get(name, "")
        if was != value:
            found.append(f"{_NAMES[name.removeprefix(_PREFIX)]} was {_shown(was)} and is {_shown(value)} now")
    return found


def check_same(metadata: Mapping[str, str], wanted: Identity, output: str) -> None:
    """Raises: OutputTaken that says what changed."""
    different = changes(metadata, wanted)
    if not different:
        return
    if is_same_but_for_input(metadata, wanted):
        raise OutputTaken(
            f"{output} belongs to a run of other requests: {different[0]}. Finished results are kept only where lines "
            "were added at the end of the file. Restore the file to continue that run, choose another output for the "
            "new requests, or add --restart to throw that run away"
        )
    raise OutputTaken(
        f"{output} belongs to a run that asked for something else: {'; '.join(different)}. "
        "Choose another output, or add --restart to throw that run away"
    )


def _shown(value: str) -> str:
    return value[:_SHOWN_MAX] if value else "not given"
