"""The side object with the hashes of a batch's requests, sorted, so that two of them can be compared in one pass.

A header of RECORD_BYTES bytes (magic, version, count), then one record for each request that may run: its hash, and its
index in the batch as 4 bytes, big endian. Sorted as bytes, so by hash, then by index. Only planners read it.
"""

import struct
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import IO

import structlog

from batchfile.errors import BatchDamaged
from batchfile.ledger import keys
from batchfile.ledger.base import Ledger
from batchfile.ledger.inputs import HashingWriter
from batchfile.ledger.records import FileRef
from batchfile.plan.request_hash import HASH_BYTES

log = structlog.get_logger()

RECORD_BYTES = HASH_BYTES + 4
RUN_RECORDS = 200_000  # sorted in memory at once: about 16 MB; an input with more needs a temporary file
BLOCK_RECORDS = 4096  # of a run, in memory while runs are merged

_HEADER = struct.Struct(">8sIQ")
_MAGIC = b"bfhashes"
_VERSION = 1


class HashFileWriter:
    """Collects the hashes of a batch in any order, then stores them sorted. Memory: one run, however many there are."""

    def __init__(self) -> None:
        self._records: list[bytes] = []
        self._num_runs = 0
        self._file: IO[bytes] | None = None
        self._is_broken = False

    def add(self, digest: bytes, index: int) -> None:
        """`index`: of the request in the batch; they ascend."""
        self._records.append(digest + index.to_bytes(4, "big"))
        if len(self._records) == RUN_RECORDS:
            self._write_run()

    def store(self, ledger: Ledger, batch_id: str, beat: Callable[[], None]) -> FileRef | None:
        """Store the object. None if there was no room for temporary files: the batch can do without.

        Raises: StoreError.
        """
        if self._is_broken:
            return None
        num = self._num_runs * RUN_RECORDS + len(self._records)
        key = keys.hashes_key(batch_id, ledger.new_id()[:12])
        with HashingWriter(ledger, key) as writer:
            writer.write_data(_HEADER.pack(_MAGIC, _VERSION, num), 0)
            for block in self._sorted():
                beat()
                writer.write_data(b"".join(block), len(block))
            return writer.commit()

    def _write_run(self) -> None:
        self._records.sort()
        try:
            if self._file is None and not self._is_broken:
                self._file = tempfile.TemporaryFile(prefix="batchfile-")  # noqa: SIM115 it is kept until all runs are written
            if self._file is not None:
                self._file.write(b"".join(self._records))
        except OSError as error:
            log.error("hashes.skipped", error=f"{error}; set TMPDIR to a folder with more space to reuse these results")
            self._is_broken, self._file = True, None
        self._num_runs += 1
        self._records.clear()

    def _sorted(self) -> Iterator[list[bytes]]:
        """All records in blocks. The next block ends with the smallest last record of all runs' blocks: nothing that
        comes later in a run is smaller.
        """
        self._records.sort()
        runs = [_blocks_of(self._records)]
        for number in range(self._num_runs):
            assert self._file is not None
            runs.append(_blocks_in(self._file, number * RUN_RECORDS))
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


def _blocks_of(records: list[bytes]) -> Iterator[list[bytes]]:
    for at in range(0, len(records), BLOCK_RECORDS):
        yield records[at : at + BLOCK_RECORDS]


def _blocks_in(file: IO[bytes], first: int) -> Iterator[list[bytes]]:
    for at in range(first, first + RUN_RECORDS, BLOCK_RECORDS):
        file.seek(at * RECORD_BYTES)
        data = file.read(min(BLOCK_RECORDS, first + RUN_RECORDS - at) * RECORD_BYTES)
        yield _records_of(data)


def _records_of(data: bytes) -> list[bytes]:
    return [data[at : at + RECORD_BYTES] for at in range(0, len(data), RECORD_BYTES)]


def read_hashes(ledger: Ledger, stored: FileRef) -> Iterator[tuple[bytes, int]]:
    """Each hash and its index, in order. What was read counts only once this has ended.

    Raises: BatchDamaged if it is not the object that was written; ObjectMissing, StoreUnavailable.
    """
    digest, rest, last, num, is_begun = sha256(), b"", b"", 0, False
    for chunk in ledger.store.stream(stored.key):
        digest.update(chunk)
        data = rest + chunk
        if not is_begun and len(data) >= _HEADER.size:
            if _HEADER.unpack_from(data) != (_MAGIC, _VERSION, stored.num_lines):
                raise BatchDamaged(f"{stored.key}: is not a file of hashes that this version can read")
            data, is_begun = data[_HEADER.size :], True
        if not is_begun:
            rest = data
            continue
        whole = len(data) // RECORD_BYTES * RECORD_BYTES
        records, rest = _records_of(data[:whole]), data[whole:]
        if records and (records[0] <= last or records != sorted(records)):
            raise BatchDamaged(f"{stored.key}: is not sorted")
        num += len(records)
        for record in records:
            yield record[:HASH_BYTES], int.from_bytes(record[HASH_BYTES:], "big")
        last = records[-1] if records else last
    if digest.hexdigest() != stored.sha256 or rest or num != stored.num_lines:
        raise BatchDamaged(f"{stored.key}: has changed since it was written")
