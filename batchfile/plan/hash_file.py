"""The side object with the hashes of a batch's requests, which only planners read.

A header, then HASH_BYTES bytes for each line of the batch, in order: the hash of its request, or NO_HASH if it cannot
run. Two batches are compared in portions of all hashes, each in memory; so the object need not be sorted, and most
batches are never reused.
"""

from array import array
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from hashlib import sha256
from itertools import compress

from batchfile.errors import BatchDamaged
from batchfile.ledger import keys
from batchfile.ledger.base import Ledger
from batchfile.ledger.inputs import HashingWriter
from batchfile.ledger.records import FileRef
from batchfile.lines.envelope import Envelope
from batchfile.plan.request_hash import HASH_BYTES, DigestOf, RequestHasher
from batchfile.types import Defaults

NO_HASH = bytes(HASH_BYTES)
NO_LINE = 2**32 - 1
PORTION_LINES = 500_000  # of the old batch, whose hashes are in memory at once: about 70 MB
_PORTIONS_MAX = 256  # values of the first byte of a hash
_HEADER = b"batchfile hash 1"  # the last digit is the version of this format
_WRITE_HASHES = 4096


class HashFileWriter(HashingWriter):
    """Hashes the requests while the planner reads them: `add` or `skip` is called once for each line, in order.

    `notes_sampled`: then `is_sampled` has a byte for each line, 1 where the same request gets another answer each time.
    """

    def __init__(
        self,
        ledger: Ledger,
        batch_id: str,
        stage: str | None,
        defaults: Defaults,
        digest_of: DigestOf | None,
        *,
        notes_sampled: bool,
    ) -> None:
        super().__init__(ledger, keys.hashes_key(batch_id, ledger.new_id()[:12]))
        self.is_sampled = bytearray()
        self._notes_sampled = notes_sampled
        self.hasher = RequestHasher(defaults, stage, digest_of or (lambda source: None))
        self._hashes: list[bytes] = []
        self.write_data(_HEADER, 0)

    def add(self, envelope: Envelope, pool: str, adapter: str | None) -> None:
        if self._notes_sampled:
            self.is_sampled.append(self.hasher.is_sampled(envelope))
        self._add(self.hasher.of(envelope, pool, adapter) or NO_HASH)

    def skip(self) -> None:
        """A line that cannot run."""
        if self._notes_sampled:
            self.is_sampled.append(False)
        self._add(NO_HASH)

    def _add(self, digest: bytes) -> None:
        self._hashes.append(digest)
        if len(self._hashes) == _WRITE_HASHES:
            self._flush()

    def _flush(self) -> None:
        self.write_data(b"".join(self._hashes), len(self._hashes))
        self._hashes.clear()

    def commit(self) -> FileRef:
        self._flush()
        return super().commit()


def hash_file(
    ledger: Ledger,
    batch_id: str,
    stage: str | None,
    defaults: Defaults | None,
    digest_of: DigestOf | None = None,
    *,
    notes_sampled: bool,
) -> AbstractContextManager[HashFileWriter | None]:
    """None without defaults, because no hash can be made then."""
    if defaults is None:
        return nullcontext()
    return HashFileWriter(ledger, batch_id, stage, defaults, digest_of, notes_sampled=notes_sampled)


def pairs(ledger: Ledger, old: FileRef, new: FileRef, beat: Callable[[], None]) -> tuple["array[int]", int]:
    """For each line of the batch `old`, the line of `new` with the same request, or NO_LINE: of several equal ones, the
    k-th for the k-th. Also how many lines of `old` have no hash. Calls `beat` every MiB.

    Raises: BatchDamaged if one of them is not the object that was written; ObjectMissing, StoreUnavailable.
    """
    new_of = array("I", [NO_LINE]) * old.num_lines
    next_of = array("I", [NO_LINE]) * old.num_lines  # the next line of `old` with the same request
    num_unhashed = 0
    for is_in in _portions(old.num_lines):
        first_of: dict[bytes, int] = {}
        last_of: dict[bytes, int] = {}  # only of requests that are repeated
        for number, digest in _read(ledger, old, is_in, beat):
            first = first_of.setdefault(digest, number)
            if first != number:
                next_of[last_of.get(digest, first)] = number
                last_of[digest] = number
        number = first_of.pop(NO_HASH, NO_LINE)
        while number != NO_LINE:
            num_unhashed, number = num_unhashed + 1, next_of[number]
        for number, digest in _read(ledger, new, is_in, beat):
            first = first_of.get(digest, NO_LINE)
            if first != NO_LINE:
                new_of[first] = number
                first_of[digest] = next_of[first]
    return new_of, num_unhashed


def _portions(num_lines: int) -> Iterator[bytes]:
    """Tables of 256 bytes, by the first byte of a hash: 1 if it belongs to the portion. Each is in one portion."""
    num = min(-(-num_lines // PORTION_LINES), _PORTIONS_MAX)
    for portion in range(num):
        yield bytes(first * num // _PORTIONS_MAX == portion for first in range(_PORTIONS_MAX))


def _read(ledger: Ledger, stored: FileRef, is_in: bytes, beat: Callable[[], None]) -> Iterator[tuple[int, bytes]]:
    """The numbers and hashes of the lines of a portion, in order. What was read counts only once this has ended."""
    digest, num, rest = sha256(), -1, b""
    for chunk in ledger.store.stream(stored.key):
        beat()
        digest.update(chunk)
        data = rest + chunk
        is_wanted = data[: len(data) // HASH_BYTES * HASH_BYTES : HASH_BYTES].translate(is_in)
        if (num < 0 and data[:HASH_BYTES] != _HEADER[: len(data)]) or num + len(is_wanted) > stored.num_lines:
            break
        for at in compress(range(len(is_wanted)), is_wanted):
            if num + at >= 0:
                yield num + at, data[at * HASH_BYTES : (at + 1) * HASH_BYTES]
        num += len(is_wanted)
        rest = data[len(is_wanted) * HASH_BYTES :]
    if digest.hexdigest() != stored.sha256 or rest or num != stored.num_lines:
        raise BatchDamaged(f"{stored.key}: has changed since it was written, or this version cannot read it")
