"""Which files a run into a folder reads, and the names of their results. Creates the folder; runs nothing."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from batchfile.errors import InvalidFile, OutputTaken, SettingsError
from batchfile.lines.kinds import FileKind, ending_of, refusal, unpacked
from batchfile.local import outputs
from batchfile.local.inputs import inspect
from batchfile.local.options import STDIN, STDOUT
from batchfile.local.remote_inputs import is_url, path_of
from batchfile.open_ledger import STORE_FOLDER

ENDINGS = (".jsonl", ".ndjson", ".parquet")  # of the files that are read of a folder, whatever is in them
JSON_ENDING = ".json"  # of those that are read if they have requests, or rows if these are wanted
ROW_ENDINGS = (".csv", ".tsv", ".tab", ".txt", JSON_ENDING)  # of those that are read if they have rows that are wanted
_ENDINGS_SHOWN = "*.jsonl, *.ndjson (also .gz or .zst) or *.parquet"
_SHOWN_MAX = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """An input as a path or URL, and the path of its results."""

    input: str
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputPlan:
    """`folder`: the absolute path of the output folder. `notes`: what was skipped, for people."""

    folder: str
    targets: tuple[Target, ...]
    notes: tuple[str, ...]


def is_several(inputs: Sequence[str], output: str) -> bool:
    """Are the results of several inputs wanted, or results in a folder? Otherwise `output` is the file of one input."""
    first = inputs[0]
    return (
        len(inputs) > 1
        or output.endswith(os.sep)
        or _is_pattern(first)
        or (os.path.isdir(first) and not _is_file_name(output))
    )


def plan_folder(inputs: Sequence[str], output: str, *, restart: bool, is_rows: bool = False) -> OutputPlan:
    """Find the inputs, and check the folder `output`, which is created if it is missing. `is_rows`: rows and text are
    wanted, instead of requests.

    Raises: InvalidFile where nothing matches; SettingsError for inputs whose results would have one name, or a folder
    that cannot be used; OutputTaken where it has other files in it, without `restart`. Nothing is created then.
    """
    folder = os.path.realpath(output)
    if not os.path.isdir(folder) and (os.path.exists(folder) or _is_file_name(output)):
        raise SettingsError(f"{output}: is a file; several inputs need a folder as the output, such as -o results/")
    if not inputs:
        raise InvalidFile("input: the list is empty; it needs at least one file")
    notes: list[str] = []
    found: dict[str, str] = {}  # each file once, in order
    for name in [name for given in inputs for name in _expanded(given, notes, is_rows=is_rows)]:
        found.setdefault(name if is_url(name) else os.path.abspath(name), name)
    targets = tuple(Target(input=name, output=os.path.join(folder, output_name(name))) for name in found.values())
    files = _files_of(targets)
    if not os.path.isdir(folder):
        if not os.path.isdir(os.path.dirname(folder)):
            raise SettingsError(f"{output}: the directory {os.path.dirname(folder)} does not exist; create it first")
        os.mkdir(folder)
    for target in targets:
        outputs.check_place(target.output, target.input if os.path.exists(target.input) else None)
    if not restart:
        _check_ours(output, folder, files)
    return OutputPlan(folder=folder, targets=targets, notes=tuple(notes))


def output_name(name: str) -> str:
    """The name of an input without compression; with .jsonl added where results cannot be written in its format."""
    base = os.path.basename(path_of(name) if is_url(name) else name)
    base = unpacked(base)
    if not base:
        raise SettingsError(f"{name}: has no file name, which the name of its results is made of")
    return base if outputs.is_writable(base) and not base.lower().endswith(JSON_ENDING) else f"{base}.jsonl"


def _is_file_name(output: str) -> bool:
    """Does an output that may not exist yet have the name of a file?"""
    return output == STDOUT or (not output.endswith(os.sep) and bool(os.path.splitext(output)[1]))


def _is_pattern(name: str) -> bool:
    return glob.has_magic(name) and not is_url(name) and not os.path.lexists(name)


def _expanded(given: str, notes: list[str], *, is_rows: bool) -> Iterator[str]:
    """The files of a path, folder or pattern. A pattern means what a shell makes of it. Adds to `notes`."""
    if given == STDIN:
        raise SettingsError("-: stdin cannot be one of several inputs, because it has no name; write it to a file")
    if _is_pattern(given):
        matches = sorted(glob.glob(given, recursive=True))
        if not matches:
            raise InvalidFile(f"{given}: no file matches this pattern")
        for name in matches:
            yield from _expanded(name, notes, is_rows=is_rows)
    elif not is_url(given) and os.path.isdir(given):
        yield from _files_in(given, notes, is_rows=is_rows)
    else:
        yield given


def _files_in(folder: str, notes: list[str], *, is_rows: bool) -> list[str]:
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    paths = [os.path.join(folder, name) for name in names]
    files = [path for path in paths if os.path.isfile(path) and not _is_of_run(path)]
    kinds = {path: kind for path in files if ending_of(path) in ROW_ENDINGS and (kind := _kind_of(path)) is not None}
    wanted = {path for path, kind in kinds.items() if kind.content == "rows"}
    if not is_rows:
        wanted = {path for path in kinds if ending_of(path) == JSON_ENDING and kinds[path].content == "requests"}
    found = [path for path in files if ending_of(path) in ENDINGS or path in wanted]
    table = next((path for path, kind in kinds.items() if kind.content == "rows"), None)
    hint = "" if table is None or is_rows else f". {refusal(kinds[table], table)}"
    whose, endings = "requests", _ENDINGS_SHOWN
    if is_rows:
        whose, endings = "rows", f"*{', *'.join(ROW_ENDINGS)}, {_ENDINGS_SHOWN}"
    if not found:
        raise InvalidFile(f"{folder}: has no file of {whose} in it; they are named {endings}{hint}")
    known = set(found)
    skipped = [name for name, path in zip(names, paths, strict=True) if path not in known]
    if skipped:
        more = f" and {len(skipped) - _SHOWN_MAX:,} more" if len(skipped) > _SHOWN_MAX else ""
        shown = ", ".join(skipped[:_SHOWN_MAX])
        notes.append(f"{folder}: skipped {shown}{more}; files of {whose} are named {endings}{hint}")
    return found


def _kind_of(path: str) -> FileKind | None:
    """None: it cannot be read."""
    try:
        return inspect(path).kind
    except InvalidFile:
        return None


def _is_of_run(path: str) -> bool:
    stems = (path.removesuffix(ending) for ending in outputs.ENDINGS)
    return any(os.path.exists(stem + outputs.RECEIPT_ENDING) for stem in stems)


def _files_of(targets: Sequence[Target]) -> dict[str, str]:
    """Every file that the results may consist of, and its input. Raises: SettingsError where two have one name."""
    found: dict[str, str] = {}
    for target in targets:
        for ending in outputs.ENDINGS:
            other = found.setdefault(target.output + ending, target.input)
            if other != target.input:
                raise SettingsError(
                    f"{other} and {target.input}: both would write {target.output + ending}; "
                    "rename one of them, or run them into different folders"
                )
    return found


def _check_ours(output: str, folder: str, files: dict[str, str]) -> None:
    """Raises: OutputTaken where the folder has files in it that are not of a run."""
    if (Path(folder) / STORE_FOLDER).is_dir():
        return
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if not name.startswith(".") and path not in files and not _is_of_run(path):
            raise OutputTaken(
                f"{output}: has other files in it, such as {name}; choose a new or empty folder, or add --restart to "
                "write into this one, which replaces files of the same names"
            )
