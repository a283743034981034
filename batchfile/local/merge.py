"""Merges results that were made separately, such as those of an errors file, into a file of results, by custom_id.

Reads both files line by line; memory holds the ids of the results that are merged in. Files are replaced atomically,
and the same merge again changes nothing.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec

from batchfile.errors import UNREADABLE, InvalidFile, OutputTaken
from batchfile.inbox import documents
from batchfile.lines.diagnostics import short
from batchfile.lines.envelope import custom_id_of
from batchfile.lines.framing import Line, iter_lines
from batchfile.lines.result import RESULT_BYTES_MAX
from batchfile.local import outputs
from batchfile.local.outputs import ERRORS_ENDING, RECEIPT_ENDING
from batchfile.types import Counts, ResultStatus

CHUNK_BYTES = 256 * 1024
_NAMED_MAX = 3  # ids in a message

ResultFormat = Literal["native", "openai"]


@dataclass(slots=True, kw_only=True)
class Merged:
    """`num_replaced`: results of OUT. `num_kept`: of OUT that had succeeded, and whose other result had failed.

    `counts`: of the new file. `has_receipt`: of OUT, now of the new results.
    """

    num_replaced: int = 0
    num_kept: int = 0
    counts: Counts = field(default_factory=Counts)
    has_receipt: bool = False


class _Response(msgspec.Struct):
    status_code: int = 0


class _Result(msgspec.Struct):
    """The keys of a result of either format that a merge needs."""

    custom_id: str | None = None
    status: ResultStatus | None = None
    response: _Response | msgspec.UnsetType | None = msgspec.UNSET

    @property
    def format(self) -> ResultFormat | None:
        """None: not a result."""
        if self.status is not None:
            return "native"
        return None if self.response is msgspec.UNSET else "openai"

    @property
    def outcome(self) -> ResultStatus:
        if self.status is not None:
            return self.status
        is_ok = isinstance(self.response, _Response) and self.response.status_code == 200
        return "succeeded" if is_ok else "errored"


_decoder = msgspec.json.Decoder(_Result)


@dataclass(slots=True)
class _Place:
    """Where a result is in FIXED. `is_used`: a line of OUT has its id."""

    start: int
    end: int
    outcome: ResultStatus
    is_used: bool = False


def merge(output: str, fixed: str, new: str | None = None) -> Merged:
    """Write the results of `output`, in its order, with those of `fixed` in place of the ones with the same ids.

    A result that succeeded is not replaced by one that failed. `new` None: `output` itself is replaced, its errors file
    loses the requests that have succeeded now, and its receipt is brought up to date.
    Raises: InvalidFile where a file has no results, or an id is missing or ambiguous; SettingsError; OutputTaken. Then
    nothing was changed.
    """
    for name in (output, fixed):
        _check_name(name)
    path, source = os.path.realpath(output), os.path.realpath(fixed)
    target = path if new is None else outputs.check_place(new, None)
    if source in {path, target}:
        raise InvalidFile(f"{fixed}: is merged into itself; name the results of the requests that were run again")
    if new is not None and os.path.exists(target):
        raise OutputTaken(f"{new} exists; choose another file, or leave out -o to replace {output}")
    with outputs.lock_output(path):
        format, places = _index(source, fixed)
        merged = Merged()
        with (
            open(path, "rb") as old,
            open(source, "rb") as added,
            outputs.replaced(target) as temporary,
            open(temporary, "wb") as file,
        ):
            for data in _merged(old, added, places, format, merged, output, fixed):
                file.write(data)
        if target == path:
            succeeded = {custom_id for custom_id, place in places.items() if place.outcome == "succeeded"}
            _remove_from_errors(path + ERRORS_ENDING, succeeded)
            merged.has_receipt = _renew_receipt(path, merged)
        return merged


def _check_name(name: str) -> None:
    if not outputs.is_writable(name) or name.endswith((outputs.PARQUET_ENDING, ".csv", ".tsv", ".txt")):
        raise InvalidFile(
            f"{name}: merge reads results as JSONL only. To replace rows that failed, fix them in the input and run "
            "the same command again: it keeps the others"
        )
    if not os.path.isfile(name):
        raise InvalidFile(f"{name}: no such file")


def _index(path: str, name: str) -> tuple[ResultFormat, dict[str, _Place]]:
    """Where each result of FIXED is. Raises: InvalidFile."""
    places: dict[str, _Place] = {}
    found: ResultFormat | None = None
    with open(path, "rb") as file:
        for line in _lines(file):
            result = _decoded(line, name, found)
            found = result.format
            if result.custom_id is None:
                raise InvalidFile(f"{name}: line {line.row}: the result has no custom_id, so it cannot be merged")
            if result.custom_id in places:
                raise InvalidFile(
                    f"{name}: line {line.row}: {short(result.custom_id)!r} is there twice; keep one of them"
                )
            places[result.custom_id] = _Place(line.start, line.end, result.outcome)
    if found is None:
        raise InvalidFile(f"{name}: has no results")
    return found, places


def _merged(
    old: BinaryIO,
    added: BinaryIO,
    places: dict[str, _Place],
    format: ResultFormat,
    merged: Merged,
    output: str,
    fixed: str,
) -> Iterator[bytes]:
    counts = {"succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
    for line in _lines(old):
        result = _decoded(line, output, format)
        data, outcome = line.data or b"", result.outcome
        place = None if result.custom_id is None else places.get(result.custom_id)
        if place is not None:
            if place.is_used:
                raise InvalidFile(
                    f"{output}: line {line.row}: {short(result.custom_id or '')!r} is there twice, so it is unknown "
                    "which of them to replace; make the ids unique in the input and run the same command again"
                )
            place.is_used = True
            if outcome == "succeeded" != place.outcome:
                merged.num_kept += 1
            else:
                added.seek(place.start)
                data, outcome = added.read(place.end - place.start).strip(b"\r\n"), place.outcome
                merged.num_replaced += 1
        counts[outcome] += 1
        yield data + b"\n"
    merged.counts = Counts(**counts)
    unknown = [custom_id for custom_id, place in places.items() if not place.is_used]
    if unknown:
        named = ", ".join(repr(short(custom_id)) for custom_id in unknown[:_NAMED_MAX])
        more = f" and {len(unknown) - _NAMED_MAX:,} more" if len(unknown) > _NAMED_MAX else ""
        raise InvalidFile(
            f"{fixed}: {named}{more}: {output} has no such custom_id. Add new requests, and lines that had no "
            "custom_id, to the input, and run the same command again: it keeps the others"
        )


def _lines(file: BinaryIO) -> Iterator[Line]:
    return iter_lines(iter(lambda: file.read(CHUNK_BYTES), b""), line_bytes_max=RESULT_BYTES_MAX)


def _decoded(line: Line, name: str, format: ResultFormat | None) -> _Result:
    """`format` None: any. Raises: InvalidFile."""
    try:
        result = _decoder.decode(line.data or b"")
    except UNREADABLE:
        result = _Result()
    if result.format is None:
        raise InvalidFile(f"{name}: line {line.row}: is not a result; merge reads what `batchfile run` has written")
    if format not in {None, result.format}:
        raise InvalidFile(
            f"{name}: line {line.row}: is a result in the {result.format} format, and the others are {format}; "
            "run both files with requests of one format"
        )
    return result


def _remove_from_errors(path: str, succeeded: set[str]) -> None:
    """Remove the requests that have succeeded now; the file too if none is left."""
    if not os.path.isfile(path):
        return
    num_left = 0
    with open(path, "rb") as old, outputs.replaced(path) as temporary, open(temporary, "wb") as file:
        for line in _lines(old):
            if custom_id_of(line.data or line.head) not in succeeded:
                num_left += 1
                old_at = old.tell()
                old.seek(line.start)
                file.write(old.read(line.end - line.start))
                old.seek(old_at)
    if not num_left:
        with suppress(FileNotFoundError):
            os.unlink(path)


def _renew_receipt(path: str, merged: Merged) -> bool:
    """So that the command of the run takes the results for its own. False: there is no receipt."""
    receipt = outputs.read_receipt(path)
    if receipt is None:
        return False
    errors = path + ERRORS_ENDING
    num_failed = receipt.input.requests - merged.counts.succeeded
    renewed = replace(
        receipt,
        output=outputs.facts_of(path, receipt.output.lines),
        errors=outputs.facts_of(errors, num_failed) if os.path.isfile(errors) else None,
        counts=merged.counts,
        merged=receipt.merged + merged.num_replaced,
    )
    with outputs.replaced(path + RECEIPT_ENDING) as temporary:
        Path(temporary).write_bytes(documents.encode(renewed))
    return True
