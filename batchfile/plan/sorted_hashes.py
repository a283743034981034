"""Sorts hashes in bounded memory, so that those of two batches can be compared in one pass. Knows no store."""

import tempfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import chain
from types import TracebackType
from typing import IO, Self

from batchfile.plan.hash_file import NO_HASH
from batchfile.plan.request_hash import HASH_BYTES

RUN_RECORDS = 200_000  # sorted in memory at once: about 16 MB; more of them need a temporary file
BLOCK_RECORDS = 4096  # of a run, in memory while runs are merged
_RECORD_BYTES = HASH_BYTES + 4


class SortedHashes:
    """The hashes of a batch, sorted. A context manager: it removes the temporary file at its end.

    A record is a hash and the number of its line in the batch as 4 bytes, so that records sort as bytes.
    """

    def __init__(self, hashes: Iterable[bytes]) -> None:
        """`hashes`: in order, with NO_HASH for lines without one. Raises: OSError; what `hashes` raises."""
        self._records: list[bytes] = []
        self._num_runs = 0
        self._file: IO[bytes] | None = None
        try:
            for number, digest in enumerate(hashes):
                if digest != NO_HASH:
                    self._records.append(digest + number.to_bytes(4, "big"))
                    if len(self._records) == RUN_RECORDS:
                        self._write_run()
        except BaseException:
            self._close()
            raise
        self._records.sort()

    def __iter__(self) -> Iterator[bytes]:
        """The records. Once."""
        return chain.from_iterable(self._merged())

    def _write_run(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="batchfile-")  # noqa: SIM115 `_close` does it
        self._records.sort()
        self._file.write(b"".join(self._records))
        self._num_runs += 1
        self._records.clear()

    def _merged(self) -> Iterator[list[bytes]]:
        """Each block ends with the smallest of the last records of all runs' blocks: all that comes later is larger."""
        runs = [self._last_run(), *(self._run(number) for number in range(self._num_runs))]
        heads = [(block, run) for run in runs for block in [next(run, [])] if block]
        while heads:
            bound = min(block[-1] for block, _ in heads)
            taken: list[bytes] = []
            left = []
            for block, run in heads:
                end = bisect_right(block, bound)
                taken += block[:end]
                rest = block[end:] or next(run, [])
                if rest:
                    left.append((rest, run))
            heads = left
            taken.sort()
            yield taken

    def _last_run(self) -> Iterator[list[bytes]]:
        for at in range(0, len(self._records), BLOCK_RECORDS):
            yield self._records[at : at + BLOCK_RECORDS]

    def _run(self, number: int) -> Iterator[list[bytes]]:
        assert self._file is not None
        end = (number + 1) * RUN_RECORDS
        for at in range(number * RUN_RECORDS, end, BLOCK_RECORDS):
            self._file.seek(at * _RECORD_BYTES)
            data = self._file.read(min(BLOCK_RECORDS, end - at) * _RECORD_BYTES)
            yield [data[start : start + _RECORD_BYTES] for start in range(0, len(data), _RECORD_BYTES)]

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()


def number_of(record: bytes) -> int:
    return int.from_bytes(record[HASH_BYTES:], "big")
