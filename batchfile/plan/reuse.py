"""Takes over results of ended batches for equal requests of a new one, whatever their ids and their order.

The hashes of both batches are compared: the k-th of several equal requests gets the result of the k-th one in the old
batch, if that succeeded. The results are copied as parts of the pseudo-pool `_reused`, whose shard records are born
done, so the old batch may be deleted afterwards. A source counts as a whole, once the digests of its hashes and results
are proven, or not at all. Memory: 10 bytes a line, some hashes and some results.
"""

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
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
from batchfile.lines.envelope import Envelope, decode_envelope
from batchfile.lines.framing import data_of
from batchfile.lines.result import FinishedLine, encoded_id, with_id
from batchfile.plan.hash_file import NO_LINE, pairs
from batchfile.plan.range_buckets import Found, RangeBuckets
from batchfile.plan.ranges import Cut
from batchfile.plan.request_hash import RequestHasher, may_name_media

log = structlog.get_logger()

PART_BYTES = 8 * 1024 * 1024  # a part ends with the line that exceeds this
AHEAD_BYTES = 32 * 1024 * 1024
_GONE = "it has expired or was deleted"
NONE_EQUAL = "nothing was reused: no request with temperature 0 or a seed is the same as one that has succeeded"
_CHANGED = "its results are damaged: they have changed since they were written"
_NO_ROOM = "a temporary file could not be written; set TMPDIR to a folder with more space"

PoolOf = Callable[[Envelope], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reuse:
    """Which results may be reused: of `sources`, earlier ones first. They must be of the same user, and made by the
    same model in the same way; the caller makes sure of both.

    `is_sampled_too`: also for requests whose answer differs each time (a temperature above 0, and no seed). `notes`:
    why others may not be used, as sentences.
    """

    sources: tuple[BatchRecord, ...]
    is_sampled_too: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NewBatch:
    """The batch that is being planned. `hashes`: of its requests, as `hasher` has made them. `is_excluded`: a byte for
    each line, not 0 for those that must not take a result. `beat` is called every MiB that is read, and for each range
    with results.
    """

    ledger: Ledger
    batch_id: str
    pool_of: PoolOf
    cuts: Sequence[Cut]
    input: InputRef
    hashes: FileRef
    is_excluded: bytearray
    beat: Callable[[], None]
    hasher: RequestHasher


@dataclass(slots=True)
class ReuseOutcome:
    """What is reused. `cuts`: without these lines. `hashes`: of the new batch. `num_from`: how many, by source.
    `num_equal`: how many requests of a source the new batch has too.
    `num_unhashed`: how many requests of a source have no hash, so that nobody knows whether they are equal.
    `fingerprints`: pool -> those of the engines that made it. `unusable`: why a source was not used, by source.
    `notes`: why results were not used, as sentences.
    """

    cuts: list[Cut]
    hashes: FileRef | None = None
    num_from: dict[str, int] = field(default_factory=dict)
    num_equal: dict[str, int] = field(default_factory=dict)
    num_unhashed: dict[str, int] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)
    fingerprints: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def note(self) -> str | None:
        return "; ".join(self.notes) or None

    def add_fingerprints(self, source: BatchRecord) -> None:
        for pool, known in (source.fingerprints or {"": ("",)}).items():
            self.fingerprints[pool] = tuple(sorted({*self.fingerprints.get(pool, ()), *known}))


def notes_sampled(reuse: Reuse | None) -> bool:
    """Must the planner know which requests are sampled?"""
    return reuse is not None and not reuse.is_sampled_too


def by_url(num: int) -> str:
    """Why so many requests are not reused."""
    requests = "1 request with media by URL is" if num == 1 else f"{num:,} requests with media by URL are"
    return f"{requests} not reused, since what the URL returns may have changed"


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
    """Why nothing of a source can be reused, in words for its user. `__cause__` names objects of the store."""


class _Stored(NamedTuple):
    """Results for range `n` that are stored: a bitmap of the lines, how many of each pool, and their parts."""

    n: int
    lines: int
    pools: Counter[str]
    parts: tuple[PartRef, ...]

    def __add__(self, other: "_Stored") -> "_Stored":  # type: ignore[override]
        return _Stored(self.n, self.lines | other.lines, self.pools + other.pools, self.parts + other.parts)


def reuse_results(batch: NewBatch, reuse: Reuse | None) -> ReuseOutcome:
    """Raises: ObjectChanged, ObjectMissing for the input of the new batch; BatchDamaged if another planner has cut that
    input in another way; StoreUnavailable.
    """
    outcome = ReuseOutcome(list(batch.cuts), batch.hashes)
    if reuse is None:
        return outcome
    outcome.notes += reuse.notes
    found = _copied(batch, reuse, outcome)
    num_left, is_foreign = -sum(outcome.num_from.values()), False
    for stored in _settled(batch, found):
        outcome.cuts[stored.n] = _without(batch.cuts[stored.n], stored)
        num_left += stored.lines.bit_count()
        is_foreign = is_foreign or stored is not found.get(stored.n)
    if is_foreign:
        for source in reuse.sources or (retention.stand_in("", 0.0),):
            outcome.add_fingerprints(source)
    if num_left > 0 and reuse.sources:  # another planner had recorded them; from which source is not known
        first = reuse.sources[0].batch_id
        outcome.num_from[first] = outcome.num_from.get(first, 0) + num_left
    if not outcome.num_from and not outcome.notes and not reuse.is_sampled_too:
        outcome.notes.append(NONE_EQUAL)
    if batch.hasher.num_by_url and reuse.sources:
        outcome.notes.append(by_url(batch.hasher.num_by_url))
    return outcome


def _copied(batch: NewBatch, reuse: Reuse, outcome: ReuseOutcome) -> dict[int, _Stored]:
    """Copies what the sources can give, by range. `outcome` gets how many are from which source, and why not."""
    found: dict[int, _Stored] = {}
    for cut in batch.cuts:
        _exclude(batch, cut, bitmaps.parse(cut.range.rejected))
    for source in reuse.sources:
        try:
            from_source = _take_all(batch, source, outcome)
        except _Unusable as error:
            outcome.unusable[source.batch_id] = str(error)
            outcome.notes.append(f"no result of {source.batch_id} was reused: {error}")
            cause = error.__cause__ or error
            log.info("reuse.skipped", batch_id=batch.batch_id, source=source.batch_id, error=str(cause))
            continue
        num = sum(stored.lines.bit_count() for stored in from_source)
        if num:
            outcome.num_from[source.batch_id] = num
            outcome.add_fingerprints(source)
        for stored in from_source:
            if source is not reuse.sources[-1]:
                _exclude(batch, batch.cuts[stored.n], stored.lines)
            found[stored.n] = found[stored.n] + stored if stored.n in found else stored
    return found


def _exclude(batch: NewBatch, cut: Cut, places: int) -> None:
    for place in bitmaps.lines(places):
        batch.is_excluded[cut.range.first + place] = 1


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
    pools = _pools(batch, record.n, list(bitmaps.lines(done)), _requests(batch, record.n))
    return _Stored(record.n, done, pools, record.parts)


def _without(cut: Cut, stored: _Stored) -> Cut:
    pools = Counter(cut.pools)
    pools.subtract(stored.pools)
    pools[keys.REUSED_POOL] = stored.lines.bit_count()
    rejected = bitmaps.render(bitmaps.parse(cut.range.rejected) | stored.lines)
    return cut._replace(range=replace(cut.range, rejected=rejected), pools=dict(pools))


def _take_all(batch: NewBatch, source: BatchRecord, outcome: ReuseOutcome) -> list[_Stored]:
    """Copies all that `source` can give. Its parts count for nothing until the caller names them. Raises: _Unusable."""
    if source.results is None:
        raise _Unusable(_GONE if source.state == "deleted" else "it has no results")
    new_of, outcome.num_unhashed[source.batch_id] = _pairs(batch, source)
    outcome.num_equal[source.batch_id] = len(new_of) - new_of.count(NO_LINE)
    nums = _num_by_range(batch, new_of)
    if not any(nums):
        return []
    lease, made = batch.ledger.new_id(), []
    with RangeBuckets(nums) as buckets:
        for stored in in_order(
            batch.ledger,
            lambda found: _store(batch, lease, *found),
            _results(batch, source.results, new_of, buckets),
            size_of=lambda found: sum([len(line) for _, line in found[1]]),
            size_max=AHEAD_BYTES,
        ):
            batch.beat()
            if stored.lines:
                made.append(stored)
    return made


@contextmanager
def _reading_source() -> Iterator[None]:
    """Raises: _Unusable, unless the store does not answer, which is not about the source."""
    try:
        yield
    except StoreUnavailable:
        raise
    except ObjectMissing as error:
        raise _Unusable(_GONE) from error
    except StoreError as error:
        raise _Unusable("one of its objects cannot be read") from error
    except BatchDamaged as error:
        raise _Unusable("its plan or the hashes of its requests are damaged") from error
    except OSError as error:
        raise _Unusable(f"{_NO_ROOM} ({error.strerror})") from error


def _pairs(batch: NewBatch, source: BatchRecord) -> tuple["array[int]", int]:
    """For each line of `source`, the new one with the same request, or NO_LINE; and how many have no hash.

    Raises: _Unusable.
    """
    with _reading_source():
        plan = load(batch.ledger, source.plan_key, Plan)
        if plan is None:
            raise _Unusable(_GONE)
        hashes = plan.record.hashes
        if hashes is None:
            raise _Unusable("an older version of batchfile planned it, without hashes of its requests")
        return pairs(batch.ledger, hashes, batch.hashes, batch.beat)


def _num_by_range(batch: NewBatch, new_of: "array[int]") -> list[int]:
    """How many results each range waits for. What is excluded becomes NO_LINE in `new_of`."""
    is_wanted = bytearray(len(batch.is_excluded))
    for old, new in enumerate(new_of):
        if new != NO_LINE:
            if batch.is_excluded[new]:
                new_of[old] = NO_LINE
            else:
                is_wanted[new] = 1
    spans = [cut.range for cut in batch.cuts]
    return [is_wanted.count(1, span.first, span.first + span.num_lines) for span in spans]


def _results(
    batch: NewBatch, stored: FileRef, new_of: "array[int]", buckets: RangeBuckets
) -> Iterator[tuple[int, list[Found]]]:
    """The results by range of the new batch, each range once it is complete, with the lines' new places.

    Raises: _Unusable, perhaps only at the end.
    """
    firsts = [cut.range.first for cut in batch.cuts]
    digest, num = sha256(), 0

    def chunks() -> Iterator[bytes]:
        for chunk in batch.ledger.store.stream(stored.key):
            batch.beat()
            digest.update(chunk)
            yield chunk

    with _reading_source():
        for lines in _blocks(chunks()):
            by_range: dict[int, list[Found]] = {}
            for new, line in zip(new_of[num : num + len(lines)], lines, strict=False):
                if new != NO_LINE:
                    n = bisect_right(firsts, new) - 1
                    by_range.setdefault(n, []).append((new - firsts[n], line))
            for n, found in by_range.items():
                if buckets.add(n, found):
                    yield n, buckets.take(n)
            num += len(lines)
    if digest.hexdigest() != stored.sha256:
        raise _Unusable(_CHANGED) from BatchDamaged(f"{stored.key}: has changed since it was written")


def _blocks(chunks: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The lines of a file of results, many at a time."""
    pieces: list[bytes] = []
    for chunk in chunks:
        whole, newline, rest = chunk.rpartition(b"\n")
        if newline:
            yield b"".join([*pieces, whole]).split(b"\n")
            pieces.clear()
        pieces.append(rest)


def _store(batch: NewBatch, lease: str, n: int, found: list[Found]) -> _Stored:
    """Write the results of a range as parts, with the ids of the new requests."""
    requests = _requests(batch, n)
    if batch.hasher.has_files:
        found = [(place, line) for place, line in found if _may_have(batch, requests[place], line)]
    renamed = [(place, with_id(encoded_id(requests[place]), line)) for place, line in found]
    # Without usage: it cost this batch nothing.
    made = [FinishedLine(place, "succeeded", line) for place, line in renamed if line is not None]
    places = [item.line for item in made]
    parts: list[PartRef] = []
    for portion in _portions(made):
        key = keys.part_key(batch.batch_id, keys.REUSED_POOL, n, lease, len(parts) + 1)
        parts.append(shards.write_part(batch.ledger, key, portion))
    return _Stored(n, bitmaps.of(places), _pools(batch, n, places, requests), tuple(parts))


def _may_have(batch: NewBatch, request: bytes, result: bytes) -> bool:
    return not may_name_media(request) or batch.hasher.is_made_of(decode_envelope(request), result)


def _requests(batch: NewBatch, n: int) -> list[bytes]:
    """The lines of range `n`, by their place in it; empty for one over the limit."""
    span, pinned = batch.cuts[n].range, batch.input
    chunks = batch.ledger.store.stream(pinned.key, span.start, span.end, match=pinned.etag)
    return [data or b"" for data in data_of(chunks, span.end - span.start, span.num_lines)]


def _pools(batch: NewBatch, n: int, places: Collection[int], requests: Sequence[bytes]) -> Counter[str]:
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
