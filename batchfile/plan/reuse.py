"""Takes over results of ended batches for equal requests of a new one, whatever their ids and their order.

The hashes of both batches are sorted and compared: the k-th of several equal requests gets the result of the k-th one
in the old batch, if that succeeded. The results are copied as parts of the pseudo-pool `_reused`, whose shard records
are born done, so the old batch may be deleted afterwards. A source counts as a whole, once the digests of its hashes
and results are proven, or not at all. Memory: 5 bytes a line, some hashes and some results; the rest of these is in
temporary files.
"""

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import NamedTuple

import structlog

from batchfile.errors import BatchDamaged, ObjectMissing, StoreError, StoreUnavailable
from batchfile.ledger import batches, bitmaps, born_done, keys, retention, shards
from batchfile.ledger.base import Ledger
from batchfile.ledger.cas import load
from batchfile.ledger.parallel import in_order
from batchfile.ledger.records import BatchRecord, FileRef, InputRef, PartRef, Plan, ShardRecord
from batchfile.lines.envelope import Envelope, custom_id_of, decode_envelope
from batchfile.lines.framing import iter_lines
from batchfile.lines.result import RESULT_BYTES_MAX, FinishedLine, after_id, with_id
from batchfile.plan.hash_file import read_hashes
from batchfile.plan.range_buckets import RangeBuckets
from batchfile.plan.ranges import Cut
from batchfile.plan.request_hash import HASH_BYTES
from batchfile.plan.sorted_hashes import SortedHashes, number_of

log = structlog.get_logger()

PART_BYTES = 8 * 1024 * 1024  # a part ends with the line that exceeds this
AHEAD_BYTES = 32 * 1024 * 1024
_NO_LINE = 2**32 - 1
_GONE = "it has expired or was deleted"
_CHANGED = "its results are damaged: they have changed since they were written"
_NO_ROOM = "a temporary file could not be written; set TMPDIR to a folder with more space"

PoolOf = Callable[[Envelope], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reuse:
    """Which results may be taken over: of `sources`, earlier ones first. They must be of the same user, and made by the
    same model in the same way; the caller makes sure of both.

    `is_sampled_too`: also for requests whose answer differs each time (a temperature above 0, and no seed). `notes`:
    why others may not be used, as sentences.
    """

    sources: tuple[BatchRecord, ...]
    is_sampled_too: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NewBatch:
    """The batch that is being planned. `hashes`: of its requests. `is_excluded`: a byte for each line, not 0 for those
    that must not take a result. `beat` is called every MiB that is read, and for each range with results.
    """

    ledger: Ledger
    batch_id: str
    pool_of: PoolOf
    cuts: Sequence[Cut]
    input: InputRef
    hashes: FileRef
    is_excluded: bytearray
    beat: Callable[[], None]


@dataclass(slots=True)
class Taken:
    """What was taken over. `cuts`: without these lines. `hashes`: of the new batch. `num_from`: how many, by source.
    `num_equal`: how many requests of a source the new batch has too.
    `fingerprints`: pool -> those of the engines that made it. `notes`: why a source was not used, as sentences.
    """

    cuts: list[Cut]
    hashes: FileRef | None = None
    num_from: dict[str, int] = field(default_factory=dict)
    num_equal: dict[str, int] = field(default_factory=dict)
    fingerprints: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def note(self) -> str | None:
        return "; ".join(self.notes) or None

    def add_fingerprints(self, source: BatchRecord) -> None:
        for pool, known in (source.fingerprints or {"": ("",)}).items():
            self.fingerprints[pool] = tuple(sorted({*self.fingerprints.get(pool, ()), *known}))


def source_of(ledger: Ledger, batch_id: str) -> BatchRecord:
    """The batch as a source. One that is gone or damaged is given too, without results: the note of the plan names it.

    Raises: StoreUnavailable.
    """
    with suppress(BatchDamaged):
        found = batches.read_batch(ledger, batch_id)
        if found is not None:
            return found
    return replace(retention.stand_in(batch_id, 0.0), state="deleted")


class _Unusable(Exception):
    """Why nothing can be taken over from a source, in words for its user. `__cause__` names objects of the store."""


class _Stored(NamedTuple):
    """Results for range `n` that are stored: a bitmap of the lines, how many of each pool, and their parts."""

    n: int
    lines: int
    pools: Counter[str]
    parts: tuple[PartRef, ...]

    def __add__(self, other: "_Stored") -> "_Stored":  # type: ignore[override]
        return _Stored(self.n, self.lines | other.lines, self.pools + other.pools, self.parts + other.parts)


def reuse_results(batch: NewBatch, reuse: Reuse) -> Taken:
    """Raises: ObjectChanged, ObjectMissing for the input of the new batch; BatchDamaged if another planner has cut that
    input in another way; StoreUnavailable.
    """
    taken = Taken(list(batch.cuts), batch.hashes, notes=list(reuse.notes))
    for cut in batch.cuts:
        for place in bitmaps.lines(bitmaps.parse(cut.range.rejected)):
            batch.is_excluded[cut.range.first + place] = 1
    found: dict[int, _Stored] = {}
    for source in reuse.sources:
        try:
            from_source = _take_all(batch, source, taken)
        except _Unusable as error:
            taken.notes.append(f"no result of {source.batch_id} was reused: {error}")
            cause = error.__cause__ or error
            log.warning("reuse.skipped", batch_id=batch.batch_id, source=source.batch_id, error=str(cause))
            continue
        num = sum(stored.lines.bit_count() for stored in from_source)
        if num:
            taken.num_from[source.batch_id] = num
            taken.add_fingerprints(source)
        for stored in from_source:
            if source is not reuse.sources[-1]:
                _exclude(batch, stored)
            found[stored.n] = found[stored.n] + stored if stored.n in found else stored

    num_left, is_foreign = -sum(taken.num_from.values()), False
    for stored in _settled(batch, found):
        taken.cuts[stored.n] = _without(batch.cuts[stored.n], stored)
        num_left += stored.lines.bit_count()
        if stored is not found.get(stored.n):
            is_foreign = True
    if is_foreign:
        for source in reuse.sources or (retention.stand_in("", 0.0),):
            taken.add_fingerprints(source)
    if num_left > 0 and reuse.sources:  # another planner had recorded them; from which source is not known
        first = reuse.sources[0].batch_id
        taken.num_from[first] = taken.num_from.get(first, 0) + num_left
    return taken


def _settled(batch: NewBatch, found: dict[int, _Stored]) -> Iterator[_Stored]:
    """What the records name once they are written. Those that another planner of this batch has left stand, because
    nothing replaces a record that is done; they differ from ours only if a source has changed since.
    """

    def put_done(stored: _Stored) -> _Stored:
        n, span = stored.n, batch.cuts[stored.n].range
        record = born_done.put_done(
            batch.ledger, batch.batch_id, keys.REUSED_POOL, n, span, stored.parts, stored.lines, "succeeded"
        )
        return stored if bitmaps.parse(record.done) == stored.lines else _of_record(batch, record)

    for stored in in_order(batch.ledger, put_done, found.values()):
        batch.beat()
        yield stored
    known = {keys.shard_key(batch.batch_id, keys.REUSED_POOL, n) for n in found}
    for entry in batch.ledger.store.list(keys.shards_prefix(batch.batch_id, keys.REUSED_POOL)):
        left = None if entry.key in known else load(batch.ledger, entry.key, ShardRecord)
        if left is not None and left.record.n < len(batch.cuts):
            born_done.check_cut(batch.batch_id, left.record, batch.cuts[left.record.n].range)
            yield _of_record(batch, left.record)


def _of_record(batch: NewBatch, record: ShardRecord) -> _Stored:
    done = bitmaps.parse(record.done)
    pools = _pools(batch, record.n, list(bitmaps.lines(done)), dict(_requests(batch, record.n)))
    return _Stored(record.n, done, pools, record.parts)


def _exclude(batch: NewBatch, stored: _Stored) -> None:
    first = batch.cuts[stored.n].range.first
    for place in bitmaps.lines(stored.lines):
        batch.is_excluded[first + place] = 1


def _without(cut: Cut, stored: _Stored) -> Cut:
    pools = Counter(cut.pools)
    pools.subtract(stored.pools)
    pools[keys.REUSED_POOL] = stored.lines.bit_count()
    rejected = bitmaps.render(bitmaps.parse(cut.range.rejected) | stored.lines)
    return cut._replace(range=replace(cut.range, rejected=rejected), pools=dict(pools))


def _take_all(batch: NewBatch, source: BatchRecord, taken: Taken) -> list[_Stored]:
    """Copies all that `source` can give. Its parts count for nothing until the caller names them. Raises: _Unusable."""
    if source.results is None:
        raise _Unusable(_GONE if source.state == "deleted" else "it has no results")
    new_of, taken.num_equal[source.batch_id] = _pairs(batch, source)
    firsts = array("I", [cut.range.first for cut in batch.cuts])
    num_of_range = Counter(bisect_right(firsts, new) - 1 for new in new_of if new != _NO_LINE)
    if not num_of_range:
        return []
    lease = batch.ledger.new_id()
    with RangeBuckets(num_of_range) as buckets:

        def store(taken: tuple[int, list[FinishedLine]]) -> _Stored:
            return _store(batch, lease, *taken)

        found = _results(batch, source, source.results, new_of, firsts, buckets)
        made = []
        for stored in in_order(
            batch.ledger,
            store,
            found,
            size_of=lambda taken: sum(len(line.result) for line in taken[1]),
            size_max=AHEAD_BYTES,
        ):
            batch.beat()
            if stored.lines:
                made.append(stored)
        return made


def _pairs(batch: NewBatch, source: BatchRecord) -> tuple["array[int]", int]:
    """For each line of `source`, the number of the new one that may take its result, or _NO_LINE; and how many of them
    are in the new batch at all. Raises: _Unusable.
    """
    new_of, num_equal = array("I", [_NO_LINE]) * source.total, 0
    try:
        plan = load(batch.ledger, source.plan_key, Plan)
        if plan is None:
            raise _Unusable(_GONE)
        hashes = plan.record.hashes
        if hashes is None:
            raise _Unusable("an older version of batchfile planned it, without hashes of its requests")
        with (
            SortedHashes(read_hashes(batch.ledger, hashes, batch.beat)) as old,
            SortedHashes(read_hashes(batch.ledger, batch.hashes, batch.beat)) as new,
        ):
            for number, old_number in _matches(new, old):
                num_equal += 1
                if not batch.is_excluded[number]:
                    new_of[old_number] = number
    except StoreError as error:
        raise _unusable(error) from error
    except (BatchDamaged, IndexError) as error:
        raise _Unusable("its plan or the hashes of its requests are damaged") from error
    except OSError as error:
        raise _Unusable(f"{_NO_ROOM} ({error.strerror})") from error
    return new_of, num_equal


def _unusable(error: StoreError) -> _Unusable:
    """Raises: `error` itself if the store does not answer, because that is not about the source."""
    if isinstance(error, StoreUnavailable):
        raise error
    return _Unusable(_GONE if isinstance(error, ObjectMissing) else "one of its objects cannot be read")


def _matches(new: Iterable[bytes], old: Iterable[bytes]) -> Iterator[tuple[int, int]]:
    """The numbers of equal requests in both batches: the k-th of them with the k-th. Both are sorted records."""
    olds = iter(old)
    ahead = next(olds, b"")
    for record in new:
        digest = record[:HASH_BYTES]
        while ahead and ahead[:HASH_BYTES] < digest:
            ahead = next(olds, b"")
        if not ahead:
            return
        if ahead[:HASH_BYTES] == digest:
            yield number_of(record), number_of(ahead)
            ahead = next(olds, b"")


def _results(
    batch: NewBatch,
    source: BatchRecord,
    stored: FileRef,
    new_of: "array[int]",
    firsts: "array[int]",
    buckets: RangeBuckets,
) -> Iterator[tuple[int, list[FinishedLine]]]:
    """The succeeded results by range of the new batch, each range once it is complete, with the lines' new places. Each
    result is what follows its custom_id.

    Raises: _Unusable, perhaps only at the end.
    """
    digest = sha256()

    def chunks() -> Iterator[bytes]:
        for chunk in batch.ledger.store.stream(stored.key):
            batch.beat()
            digest.update(chunk)
            yield chunk

    try:
        for old, line in enumerate(iter_lines(chunks(), line_bytes_max=RESULT_BYTES_MAX)):
            if old >= len(new_of):
                raise _Unusable(_CHANGED) from BatchDamaged(f"{stored.key}: has more results than requests")
            new = new_of[old]
            if new == _NO_LINE:
                continue
            n = bisect_right(firsts, new) - 1
            rest = after_id(line.data or b"")
            made = None if rest is None else FinishedLine(new - firsts[n], "succeeded", rest)
            if buckets.add(n, made):
                yield n, buckets.take(n)
    except StoreError as error:
        raise _unusable(error) from error
    except OSError as error:
        raise _Unusable(f"{_NO_ROOM} ({error.strerror})") from error
    if digest.hexdigest() != stored.sha256:
        raise _Unusable(_CHANGED) from BatchDamaged(f"{stored.key}: has changed since it was written")


def _store(batch: NewBatch, lease: str, n: int, lines: list[FinishedLine]) -> _Stored:
    """Write the results of a range as parts, with the ids of the new requests."""
    requests = dict(_requests(batch, n)) if lines else {}
    made = []
    for line in lines:
        custom_id = custom_id_of(requests[line.line])
        if custom_id is not None:  # without usage: it cost this batch nothing
            made.append(FinishedLine(line.line, "succeeded", with_id(custom_id, line.result)))
    places = [line.line for line in made]
    parts: list[PartRef] = []
    for portion in _portions(made):
        key = keys.part_key(batch.batch_id, keys.REUSED_POOL, n, lease, len(parts) + 1)
        parts.append(shards.write_part(batch.ledger, key, portion))
    return _Stored(n, bitmaps.of(places), _pools(batch, n, places, requests), tuple(parts))


def _requests(batch: NewBatch, n: int) -> Iterator[tuple[int, bytes]]:
    """The lines of range `n` that can be read, each with its place in it."""
    span, pinned = batch.cuts[n].range, batch.input
    chunks = batch.ledger.store.stream(pinned.key, span.start, span.end, match=pinned.etag)
    return ((place, line.data) for place, line in enumerate(iter_lines(chunks)) if line.data is not None)


def _pools(batch: NewBatch, n: int, places: Collection[int], requests: Mapping[int, bytes]) -> Counter[str]:
    """How many of these lines of range `n` each pool would have run."""
    pools = [pool for pool, num in batch.cuts[n].pools.items() if num]
    if len(pools) == 1:
        return Counter({pools[0]: len(places)})
    return Counter(batch.pool_of(decode_envelope(requests[place])) for place in places)


def _portions(lines: list[FinishedLine]) -> Iterator[list[FinishedLine]]:
    portion: list[FinishedLine] = []
    size = 0
    for line in lines:
        portion.append(line)
        size += len(line.result)
        if size >= PART_BYTES:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion
