"""Collects results by range of a batch until a range is complete; those that do not fit into memory go to a file.

Where results arrive in the order of the ranges, as after an edit of a file, nothing is written to the file.
"""

import tempfile
from collections.abc import Mapping
from types import TracebackType
from typing import IO, NamedTuple, Self

from batchfile.lines.result import FinishedLine, decode_part, encode_part

MEMORY_BYTES = 64 * 1024 * 1024
_LINE_BYTES = 200  # what a line takes in memory in addition to its result


class _Extent(NamedTuple):
    start: int
    size: int


class RangeBuckets:
    """`num_of_range`: how many lines each range waits for. A context manager: it removes the file at its end."""

    def __init__(self, num_of_range: Mapping[int, int], memory_bytes: int = MEMORY_BYTES) -> None:
        self._left = dict(num_of_range)
        self._memory_bytes = memory_bytes
        self._lines: dict[int, list[FinishedLine]] = {}
        self._size = 0
        self._extents: dict[int, list[_Extent]] = {}
        self._file: IO[bytes] | None = None
        self._end = 0

    def add(self, n: int, line: FinishedLine | None) -> bool:
        """Add one of the lines that range `n` waits for (None: it has no result). Is the range complete now?

        Raises: OSError.
        """
        self._left[n] -= 1
        if line is not None:
            self._lines.setdefault(n, []).append(line)
            self._size += _LINE_BYTES + len(line.result)
            if self._size > self._memory_bytes and self._left[n]:
                self._spill()
        return not self._left[n]

    def take(self, n: int) -> list[FinishedLine]:
        """The lines of a range by their place in it; it forgets them. Raises: OSError."""
        lines = self._lines.pop(n, [])
        self._size -= sum(_LINE_BYTES + len(line.result) for line in lines)
        for extent in self._extents.pop(n, []):
            assert self._file is not None
            self._file.seek(extent.start)
            spilled = decode_part(self._file.read(extent.size))
            lines += [FinishedLine(line.line, line.status, line.result) for line in spilled]
        return sorted(lines, key=lambda line: line.line)

    def _spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="batchfile-")  # noqa: SIM115 `__exit__` closes it
        self._file.seek(self._end)
        for n, lines in self._lines.items():
            data = encode_part(lines)
            self._file.write(data)
            self._extents.setdefault(n, []).append(_Extent(self._end, len(data)))
            self._end += len(data)
        self._lines.clear()
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
