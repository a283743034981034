"""Copies rows of a Parquet file, with all their columns, to other Parquet files. Knows no requests.

Runs in this process: for a person's own file, not for one that a service received.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from batchfile.errors import InvalidFile, check_installed
from batchfile.lines.parquet import BUFFER_BYTES, ROW_GROUP_ROWS, damaged

COPIED_ROWS = 256  # read at a time


def num_rows(path: str) -> int:
    """Raises: InvalidFile; SettingsError if Parquet support is not installed."""
    with _opened(path) as file:
        return int(file.metadata.num_rows)


def copy_rows(path: str, targets: Iterable[tuple[str, Iterable[int]]]) -> None:
    """Write to each target the rows with its indexes, which ascend over all targets. Raises: InvalidFile."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _opened(path) as file:
        rows = _Rows(file.iter_batches(COPIED_ROWS, use_threads=False))
        for target, indexes in targets:
            group: list[Any] = []
            with pq.ParquetWriter(target, file.schema_arrow, compression="zstd") as writer:
                for taken in rows.take(indexes):
                    group.append(taken)
                    if sum(batch.num_rows for batch in group) >= ROW_GROUP_ROWS:
                        writer.write_table(pa.Table.from_batches(group))
                        group = []
                if group:
                    writer.write_table(pa.Table.from_batches(group))


class _Rows:
    """Reads batches one after the other. Their sizes may differ."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches = batches
        self._batch = next(batches, None)
        self._start = 0  # of the batch, in the file

    def take(self, indexes: Iterable[int]) -> Iterator[Any]:
        """The rows with these ascending indexes, in batches."""
        wanted: list[int] = []
        for index in indexes:
            while self._batch is not None and index >= self._start + self._batch.num_rows:
                if wanted:
                    yield self._batch.take(wanted)
                    wanted = []
                self._start += self._batch.num_rows
                self._batch = next(self._batches, None)
            wanted.append(index - self._start)
        if wanted and self._batch is not None:
            yield self._batch.take(wanted)


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    check_installed("pyarrow", extra="parquet", what=path)
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, memory_map=False, pre_buffer=False, buffer_size=BUFFER_BYTES) as file:
            yield file
    except pa.ArrowException as error:
        raise InvalidFile(damaged(path, error)) from None
