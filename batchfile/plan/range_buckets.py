"""Collects results by range of a batch until a range is complete; those that do not fit into memory go to a file.

Where results arrive in the order of the ranges, as after an edit of a file, nothing is written to the file.
"""

import tempfile
from collections.abc import Iterable
from types import TracebackType
from typing import IO, Self

MEMORY_BYTES = 64 * 1024 * 1024
_LINE_BYTES = 200  # what a result takes in memory in addition to its bytes

Found = tuple[int, bytes]  # the place of a line in its range, and a line for it, without a newline


class RangeBuckets:
    """`nums`: how many lines each range waits for. A context manager: it removes the file at its end."""

    def __init__(self, nums: Iterable[int]) -> None:
        self._left = list(nums)
        self._found: dict[int, list[Found]] = {}
        self._size = 0
        self._extents: dict[int, list[tuple[int, int]]] = {}  # by range, each a start and a size
        self._file: IO[bytes] | None = None
        self._end = 0

    def add(self, n: int, found: list[Found]) -> bool:
        """Add some of the lines that range `n` waits for. Is the range complete now? Raises: OSError."""
        self._left[n] -= len(found)
        self._found.setdefault(n, []).extend(found)
        self._size += _size_of(found)
        if self._size > MEMORY_BYTES and self._left[n]:
            self._spill()
        return not self._left[n]

    def take(self, n: int) -> list[Found]:
        """The lines of a range by their place in it; it forgets them. Raises: OSError."""
        found = self._found.pop(n, [])
        self._size -= _size_of(found)
        for start, size in self._extents.pop(n, []):
            assert self._file is not None
            self._file.seek(start)
            for row in self._file.read(size).split(b"\n"):
                place, _, line = row.partition(b" ")
                found.append((int(place), line))
        return sorted(found)

    def _spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="batchfile-")  # noqa: SIM115 `__exit__` closes it
        self._file.seek(self._end)
        for n, found in self._found.items():
            data = b"\n".join([b"%d %b" % one for one in found])
            self._file.write(data)
            self._extents.setdefault(n, []).append((self._end, len(data)))
            self._end += len(data)
        self._found.clear()
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()


def _size_of(found: list[Found]) -> int:
    return _LINE_BYTES * len(found) + sum([len(line) for _, line in found])
