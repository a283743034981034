"""The side object with the hashes of a batch's requests, which only planners read.

A header, then HASH_BYTES bytes for each line of the batch, in order: the hash of its request, or NO_HASH if it cannot
run. It is not sorted: sorting costs as much as hashing, and most batches are never reused.
"""

from collections.abc import Callable, Iterator
from hashlib import sha256

from batchfile.errors import BatchDamaged
from batchfile.ledger import keys
from batchfile.ledger.base import Ledger
from batchfile.ledger.inputs import HashingWriter
from batchfile.ledger.records import FileRef
from batchfile.plan.request_hash import HASH_BYTES

NO_HASH = bytes(HASH_BYTES)
_HEADER = b"batchfile hash 1"  # the last digit is the version of this format
_WRITE_HASHES = 4096


class HashFileWriter(HashingWriter):
    """Writes the object while the input is read."""

    def __init__(self, ledger: Ledger, batch_id: str) -> None:
        super().__init__(ledger, keys.hashes_key(batch_id, ledger.new_id()[:12]))
        self._hashes: list[bytes] = []
        self.write_data(_HEADER, 0)

    def add(self, digest: bytes) -> None:
        self._hashes.append(digest)
        if len(self._hashes) == _WRITE_HASHES:
            self._flush()

    def _flush(self) -> None:
        self.write_data(b"".join(self._hashes), len(self._hashes))
        self._hashes.clear()

    def commit(self) -> FileRef:
        self._flush()
        return super().commit()


def read_hashes(ledger: Ledger, stored: FileRef, beat: Callable[[], None]) -> Iterator[bytes]:
    """The hash of each line, in order. What was read counts only once this has ended. Calls `beat` every MiB.

    Raises: BatchDamaged if it is not the object that was written; ObjectMissing, StoreUnavailable.
    """
    digest, num, rest = sha256(), -len(_HEADER) // HASH_BYTES, b""
    for chunk in ledger.store.stream(stored.key):
        beat()
        digest.update(chunk)
        data = rest + chunk
        end = len(data) // HASH_BYTES * HASH_BYTES
        for at in range(0, end, HASH_BYTES):
            if num >= 0:
                yield data[at : at + HASH_BYTES]
            elif data[:HASH_BYTES] != _HEADER:
                raise BatchDamaged(f"{stored.key}: is not a file of hashes that this version can read")
            num += 1
        rest = data[end:]
    if digest.hexdigest() != stored.sha256 or rest or num != stored.num_lines:
        raise BatchDamaged(f"{stored.key}: has changed since it was written")
