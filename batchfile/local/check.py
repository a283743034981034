"""Checks a file for `batchfile validate`, in several processes if it is large. Runs nothing, stores nothing.

Large plain files are cut at line ends into pieces that forked processes scan; problems are reported in file order.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import BinaryIO

from batchfile.errors import InvalidFile, InvalidRequest
from batchfile.lines.envelope import decode_envelope
from batchfile.lines.file_formats import CHUNK_BYTES
from batchfile.lines.framing import NO_REQUEST, iter_lines
from batchfile.lines.parse import parse_request
from batchfile.lines.validate import LineProblem, Scan, Summary, nul_tail, repeated, validate
from batchfile.local.inputs import Source, requests_of
from batchfile.types import REQUESTS_MAX, Defaults, InputFormat, Request, RoutingTable

PIECE_BYTES = 8 * 1024 * 1024
BIG_BYTES = 2 * PIECE_BYTES  # below this, starting processes costs more than it saves


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a file is checked against. `table` None: routing is not checked."""

    table: RoutingTable | None = None
    stage: str | None = None
    defaults: Defaults = field(default_factory=Defaults)


@dataclass(frozen=True, slots=True)
class _Piece:
    path: str
    start: int
    end: int
    format: InputFormat | None
    rules: Rules


@dataclass(frozen=True, slots=True)
class _Scanned:
    problems: list[LineProblem]
    scan: Scan
    num_rows: int


class FileCheck:
    """The check of one file. `summary` is complete once `problems` is exhausted."""

    def __init__(self, source: Source, rules: Rules) -> None:
        self.summary = Summary()
        self._source = source
        self._rules = rules

    def problems(self) -> Iterator[LineProblem]:
        """In file order; repeated custom_ids last. Raises: InvalidFile where the file as a whole cannot be read."""
        path = self._source.path
        num_processes = os.cpu_count() or 1
        can_fork = "fork" in multiprocessing.get_all_start_methods() and sys.platform != "darwin"
        is_plain = self._source.is_plain
        if path is not None and is_plain and can_fork and num_processes > 1 and os.path.getsize(path) >= BIG_BYTES:
            yield from self._in_processes(path, num_processes)
            return
        scan = _new_scan(self._rules)
        yield from validate(lambda: requests_of(self._source), scan)
        self.summary = scan.summary

    def _in_processes(self, path: str, num_processes: int) -> Iterator[LineProblem]:
        found = _first_format(self._source)
        pieces = (_Piece(path, start, end, found, self._rules) for start, end in _cuts(path))
        total = _new_scan(self._rules)
        num_rows = 0
        # Forked, so that all processes share the hash seed of the custom_ids; this process has no threads yet.
        with multiprocessing.get_context("fork").Pool(num_processes) as pool:
            for done in pool.imap(_scan_piece, pieces):
                for problem in done.problems:
                    yield replace(problem, line=problem.line + num_rows)
                _add(total.summary, done.scan.summary)
                total.duplicates.merge(done.scan.duplicates)
                num_rows += done.num_rows
        self.summary = total.summary
        self.summary.format = found
        self.summary.size_bytes = os.path.getsize(path)
        if _last_byte(path) == b"\0":
            self.summary.num_problems += 1
            yield nul_tail()
        if self.summary.num_requests == 0:
            raise InvalidFile(f"{self._source.shown}: {NO_REQUEST}")
        if self.summary.num_requests > REQUESTS_MAX:
            raise InvalidFile(f"{self._source.shown}: contains more than {REQUESTS_MAX:,} requests; split it")
        suspects = total.duplicates.suspects()
        if suspects:
            for problem in repeated(requests_of(self._source), suspects):
                self.summary.num_problems += 1
                yield problem


def _last_byte(path: str) -> bytes:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)


def token_problems(source: Source, defaults: Defaults, fit: Callable[[Request], None]) -> Iterator[LineProblem]:
    """A problem for each valid line that `fit` rejects with InvalidRequest."""
    for row, request in valid_lines(source, defaults):
        try:
            fit(request)
        except InvalidRequest as error:
            yield LineProblem(
                line=row,
                column=None,
                custom_id=request.custom_id,
                where="",
                message=str(error),
                fix="",
            )


def valid_lines(source: Source, defaults: Defaults) -> Iterator[tuple[int, Request]]:
    """The numbers of the lines that can run, and their requests."""
    for line in iter_lines(requests_of(source)):
        with suppress(InvalidRequest):  # the check reports what is wrong with it
            yield line.row, parse_request(line.data or b"", defaults)


def _new_scan(rules: Rules) -> Scan:
    return Scan(table=rules.table, stage=rules.stage, defaults=rules.defaults)


def _scan_piece(piece: _Piece) -> _Scanned:
    scan = _new_scan(piece.rules)
    scan.summary.format = piece.format
    num_rows = 0

    def chunks() -> Iterator[bytes]:
        nonlocal num_rows
        with open(piece.path, "rb", buffering=0) as file:
            file.seek(piece.start)
            left = piece.end - piece.start
            while left > 0 and (chunk := file.read(min(left, CHUNK_BYTES))):
                left -= len(chunk)
                num_rows += chunk.count(b"\n")
                yield chunk

    problems = list(scan.problems(chunks(), piece.start))
    return _Scanned(problems, scan, num_rows)


def _cuts(path: str) -> Iterator[tuple[int, int]]:
    """Pieces of whole lines, each about PIECE_BYTES."""
    size = os.path.getsize(path)
    start = 0
    with open(path, "rb") as file:
        while start < size:
            end = min(size, start + PIECE_BYTES)
            if end < size:
                end = _line_end(file, end, size)
            yield start, end
            start = end


def _line_end(file: BinaryIO, at: int, size: int) -> int:
    """The first byte after the line that contains the byte `at`. Does not read a long line into memory at once."""
    file.seek(at)
    while chunk := file.read(CHUNK_BYTES):
        found = chunk.find(b"\n")
        if found >= 0:
            return at + found + 1
        at += len(chunk)
    return size


def _first_format(source: Source) -> InputFormat | None:
    """The input format of the first readable line."""
    for line in iter_lines(requests_of(source)):
        try:
            return decode_envelope(line.data or b"").format
        except InvalidRequest:
            continue
    return None


def _add(total: Summary, piece: Summary) -> None:
    total.num_requests += piece.num_requests
    total.num_bad += piece.num_bad
    total.num_problems += piece.num_problems
    total.prompt_chars += piece.prompt_chars
    total.hints.update(piece.hints)
    total.models.update(piece.models)
    total.max_tokens.update(piece.max_tokens)
