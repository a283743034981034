"""Merges results that were made separately, such as those of an errors file, into a file of results, by custom_id.

Reads both files line by line; memory holds the ids of the results that are merged in. Files are replaced atomically,
and the same merge again changes nothing.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import msgspec

from batchfile.errors import UNREADABLE, InvalidFile, OutputTaken
from batchfile.inbox import documents
from batchfile.lines.diagnostics import short
from batchfile.lines.envelope import custom_id_of
from batchfile.lines.failures import FailureTally, with_advice
from batchfile.lines.framing import Line, iter_lines
from batchfile.lines.result import RESULT_BYTES_MAX
from batchfile.local import outputs
from batchfile.local.inputs import file_digest
from batchfile.local.outputs import ERRORS_ENDING, REASONS_ENDING, RECEIPT_ENDING
from batchfile.types import Counts, FailureGroup, ResultStatus

CHUNK_BYTES = 256 * 1024
_NAMED_MAX = 3  # ids in a message


@dataclass(slots=True, kw_only=True)
class Merged:
    """`num_replaced`: results of OUT. `num_kept`: of OUT that had succeeded, and whose other result had failed.

    `counts`: of the new file. `has_receipt`: OUT has one, which is up to date.
    """

    num_replaced: int = 0
    num_kept: int = 0
    counts: Counts = field(default_factory=Counts)
    has_receipt: bool = False


@dataclass(slots=True)
class _Place:
    """Where a result is in FIXED. `is_used`: a line of OUT has its id."""

    start: int
    end: int
    outcome: ResultStatus
    is_used: bool = False


Places = dict[str, _Place]


class _Response(msgspec.Struct):
    status_code: int = 0


class _Result(msgspec.Struct):
    """The keys of a native result, or of one in OpenAI's format, that a merge needs."""

    custom_id: str | None = None
    status: ResultStatus | None = None
    response: _Response | msgspec.UnsetType | None = msgspec.UNSET

    @property
    def format(self) -> str | None:
        """None: it is not a result."""
        return "native" if self.status else None if self.response is msgspec.UNSET else "OpenAI"

    @property
    def outcome(self) -> ResultStatus:
        is_ok = isinstance(self.response, _Response) and self.response.status_code == 200
        return self.status or ("succeeded" if is_ok else "errored")


_decoder = msgspec.json.Decoder(_Result)


def merge(output: str, fixed: str, new: str | None = None) -> Merged:
    """Write the results of `output`, in its order, with those of `fixed` in place of the ones with the same ids.

    A result that succeeded is not replaced by one that failed. `new` None: `output` itself is replaced, its errors and
    reasons files lose the requests that have succeeded now, and its receipt is brought up to date.
    Raises: InvalidFile where a file has no results, or an id is missing or ambiguous; SettingsError; OutputTaken. Then
    nothing was changed.
    """
    for name in (output, fixed):
        if not os.path.isfile(name):
            raise InvalidFile(f"{name}: no such file")
    path, source = os.path.realpath(output), os.path.realpath(fixed)
    target = path if new is None else outputs.check_place(new, None)
    if source in {path, target}:
        raise InvalidFile(f"{fixed}: is merged into itself; name the results of the requests that were run again")
    if new is not None and os.path.exists(target):
        raise OutputTaken(f"{new} exists; choose another file, or leave out -o to replace {output}")
    with outputs.lock_output(path), open(path, "rb") as old, open(source, "rb") as added:
        places, merged = _places(added, fixed), Merged()
        with outputs.replaced(target) as temporary, open(temporary, "wb") as file:
            for data in _merged(old, added, places, merged, output):
                file.write(data)
            _check_used(places, output, fixed)
        if new is None:
            succeeded = {custom_id for custom_id, place in places.items() if place.outcome == "succeeded"}
            _remove_from_errors(path + ERRORS_ENDING, succeeded)
            tally = _renew_reasons(path + REASONS_ENDING, added, places)
            merged.counts = replace(merged.counts, rejected=tally.num_rejected)
            merged.has_receipt = _renew_receipt(path, merged, tally.top(), _made_by(source))
    return merged


def _places(added: BinaryIO, name: str) -> Places:
    """Raises: InvalidFile."""
    places: Places = {}
    for line, result in _results(added, name):
        if result.custom_id is None:
            raise InvalidFile(f"{name}: line {line.row}: the result has no custom_id, so it cannot be merged")
        if result.custom_id in places:
            shown = short(result.custom_id)
            raise InvalidFile(f"{name}: line {line.row}: {shown!r} is there twice; keep one of them")
        places[result.custom_id] = _Place(line.start, line.end, result.outcome)
    if not places:
        raise InvalidFile(f"{name}: has no results")
    return places


def _merged(old: BinaryIO, added: BinaryIO, places: Places, merged: Merged, name: str) -> Iterator[bytes]:
    """The lines of the new file. Raises: InvalidFile."""
    added.seek(0)
    _, first = next(_results(added, name))
    counts = dict.fromkeys(("succeeded", "errored", "canceled", "expired"), 0)
    for line, result in _results(old, name, first.format):
        data, outcome = line.data or b"", result.outcome
        place = places.get(result.custom_id or "")
        if place is not None and place.is_used:
            raise InvalidFile(
                f"{name}: line {line.row}: {short(result.custom_id or '')!r} is there twice, so it is unknown which of "
                "them to replace; make the ids unique in the input and run the same command again"
            )
        if place is not None:
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


def _check_used(places: Places, output: str, fixed: str) -> None:
    """Raises: InvalidFile where a result of FIXED has no place in OUT."""
    unknown = [repr(short(custom_id)) for custom_id, place in places.items() if not place.is_used]
    if unknown:
        more = f" and {len(unknown) - _NAMED_MAX:,} more" if len(unknown) > _NAMED_MAX else ""
        raise InvalidFile(
            f"{fixed}: {', '.join(unknown[:_NAMED_MAX])}{more}: {output} has no such custom_id. Add new requests, and "
            "lines that had no custom_id, to the input, and run the same command again: it keeps the others"
        )


def _results(file: BinaryIO, name: str, format: str | None = None) -> Iterator[tuple[Line, _Result]]:
    """`format`: of all; None: that of the first. Raises: InvalidFile."""
    for line in _lines(file):
        try:
            result = _decoder.decode(line.data or b"")
        except UNREADABLE:
            result = _Result()
        if result.format is None:
            raise InvalidFile(
                f"{name}: line {line.row}: is not a result; merge reads JSONL that `batchfile run` wrote for requests. "
                "Of a table, fix the input and run the same command again: it keeps the other answers"
            )
        format = format or result.format
        if format != result.format:
            raise InvalidFile(
                f"{name}: line {line.row}: is a result in the {result.format} format, and others are in the {format} "
                "format; run both files with requests of one format"
            )
        yield line, result


def _lines(file: BinaryIO) -> Iterator[Line]:
    return iter_lines(iter(lambda: file.read(CHUNK_BYTES), b""), line_bytes_max=RESULT_BYTES_MAX)


def _remove_from_errors(path: str, succeeded: set[str]) -> None:
    """Remove the requests that have succeeded now; the file too if none is left."""
    with suppress(FileNotFoundError):
        with (
            open(path, "rb") as old,
            open(path, "rb") as same,
            outputs.replaced(path) as temporary,
            open(temporary, "wb") as file,
        ):
            for line in _lines(old):
                if custom_id_of(line.data or line.head) not in succeeded:
                    same.seek(line.start)
                    file.write(same.read(line.end - line.start))
        if not os.path.getsize(path):
            os.unlink(path)


def _renew_reasons(path: str, added: BinaryIO, places: Places) -> FailureTally:
    """Remove the requests that have succeeded now, and say why others failed again; remove the file if none is left."""
    tally = FailureTally()
    with suppress(FileNotFoundError):
        with open(path, "rb") as old, outputs.replaced(path) as temporary, open(temporary, "wb") as file:
            for line in _lines(old):
                data = line.data or b""
                place = places.get(custom_id_of(data) or "")
                if place is None:
                    file.write(tally.add_reason(data) + b"\n")
                elif place.outcome != "succeeded":
                    added.seek(place.start)
                    file.write(tally.add_reason(data, added.read(place.end - place.start)) + b"\n")
        if not os.path.getsize(path):
            os.unlink(path)
    return tally


def _made_by(path: str) -> tuple[str, ...]:
    """The fingerprints of the engines that made the results at `path`; an empty one is unknown."""
    receipt = outputs.read_receipt(path)
    is_known = receipt is not None and not receipt.merged and receipt.output.sha256 == file_digest(path)
    return receipt.fingerprints or ("",) if receipt is not None and is_known else ("",)


def _renew_receipt(path: str, merged: Merged, failures: tuple[FailureGroup, ...], made_by: tuple[str, ...]) -> bool:
    """So that the command of the run takes the results for its own. False: there is no receipt."""
    receipt = outputs.read_receipt(path)
    if receipt is None:
        return False
    errors, reasons = path + ERRORS_ENDING, path + REASONS_ENDING
    num_failed = receipt.input.requests - merged.counts.succeeded
    renewed = replace(
        receipt,
        output=outputs.facts_of(path, receipt.output.lines),
        errors=outputs.facts_of(errors, num_failed) if os.path.isfile(errors) else None,
        reasons=outputs.facts_of(reasons, num_failed) if os.path.isfile(reasons) else None,
        failures=with_advice(failures),
        counts=merged.counts,
        merged=receipt.merged + merged.num_replaced,
        merged_by=tuple(sorted({*receipt.merged_by, *made_by})) if merged.num_replaced else receipt.merged_by,
    )
    with outputs.replaced(path + RECEIPT_ENDING) as temporary:
        Path(temporary).write_bytes(documents.encode(renewed))
    return True
