"""Takes over the results of an ended batch into a new one whose input begins with the same bytes.

They are copied as parts of the pseudo-pool `_reused`, whose shard records are born done, so the old batch can be
deleted afterwards. Only successful results with the same custom_id are taken. The digests of the old input and results
are checked before any of it counts.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from batchfile.errors import BatchDamaged, InvalidFile
from batchfile.ledger import bitmaps, keys, shards
from batchfile.ledger.base import Ledger
from batchfile.ledger.parallel import in_order
from batchfile.ledger.records import BatchRecord, FileRef, InputRef, PartRef, Range
from batchfile.lines.envelope import Envelope, decode_envelope
from batchfile.lines.framing import Line, iter_lines
from batchfile.lines.result import RESULT_BYTES_MAX, FinishedLine, decode_result
from batchfile.types import FailureGroup

PART_BYTES = 8 * 1024 * 1024  # a part ends with the line that exceeds this
AHEAD_BYTES = 32 * 1024 * 1024


PoolOf = Callable[[Envelope], str]


class Cut(NamedTuple):
    """A finished range: its requests per pool, the parts of its rejected lines, and these lines without their results.

    Steps after the pass over the input may reject more lines, or reuse some.
    """

    range: Range
    pools: dict[str, int]
    parts: list[PartRef]
    rejected: list[FinishedLine]
    failures: tuple[FailureGroup, ...] = ()


class _Taken(NamedTuple):
    """The lines that are taken over in range `n`, and its cut without them."""

    n: int
    cut: Cut
    lines: list[FinishedLine]


def reuse_results(
    ledger: Ledger,
    batch_id: str,
    pool_of: PoolOf,
    cuts: Sequence[Cut],
    pinned: InputRef,
    old: BatchRecord,
    beat: Callable[[], None],
) -> list[Cut]:
    """The cuts of `pinned` without the lines that have results in `old`. `beat` is called for each range with some.

    Raises: InvalidFile if the old input is not the beginning of this one; BatchDamaged if the old results have changed
    since they were written; ObjectChanged, ObjectMissing.
    """
    assert old.results is not None
    lease = ledger.new_id()

    def store(taken: _Taken) -> _Taken:
        parts: list[PartRef] = []
        for lines in _portions(taken.lines):
            key = keys.part_key(batch_id, keys.REUSED_POOL, taken.n, lease, len(parts) + 1)
            parts.append(shards.write_part(ledger, key, lines))
        shards.put_done(ledger, batch_id, keys.REUSED_POOL, taken.n, parts, taken.lines)
        return taken

    def size(taken: _Taken) -> int:
        return sum(len(line.result) for line in taken.lines)

    left = list(cuts)
    found = _taken(ledger, pool_of, cuts, pinned, old, old.results)
    for taken in in_order(ledger, store, found, size_of=size, size_max=AHEAD_BYTES):
        beat()
        left[taken.n] = taken.cut
    return left


def _taken(
    ledger: Ledger, pool_of: PoolOf, cuts: Sequence[Cut], pinned: InputRef, old: BatchRecord, stored: FileRef
) -> Iterator[_Taken]:
    was, kept = hashlib.sha256(), hashlib.sha256()
    num_same = old.total - _is_last_line_longer(ledger, pinned, old.input.size)
    begin = ledger.store.stream(pinned.key, 0, min(old.input.size, pinned.size), match=pinned.etag)
    lines = iter_lines(_hashed(begin, was))
    results = iter_lines(_hashed(ledger.store.stream(stored.key), kept), line_bytes_max=RESULT_BYTES_MAX)
    for n, cut in enumerate(cuts):
        places = range(min(cut.range.num_lines, num_same - cut.range.first))
        if not places:
            break
        taken = _of_range(pool_of, n, cut, zip(places, lines, results, strict=False))
        if taken.lines:
            yield taken
    for rest in (lines, results):
        for _ in rest:
            pass
    if was.hexdigest() != old.input.sha256:
        raise InvalidFile(f"the input no longer begins like that of {old.batch_id}, so none of its results can be kept")
    if kept.hexdigest() != stored.sha256:
        raise BatchDamaged(f"{stored.key}: the results of {old.batch_id} are damaged; add --restart to run them again")


def _of_range(pool_of: PoolOf, n: int, cut: Cut, found: Iterable[tuple[int, Line, Line]]) -> _Taken:
    rejected, pools = bitmaps.parse(cut.range.rejected), dict(cut.pools)
    lines: list[FinishedLine] = []
    for place, line, result in found:
        if rejected >> place & 1 or line.data is None or result.data is None:
            continue
        known, envelope = decode_result(result.data), decode_envelope(line.data)
        if known.status == "succeeded" and known.custom_id == envelope.custom_id:
            lines.append(FinishedLine(place, "succeeded", result.data))  # without usage: it cost this batch nothing
            pools[pool_of(envelope)] -= 1
    pools[keys.REUSED_POOL] = len(lines)
    span = replace(cut.range, rejected=bitmaps.render(rejected | bitmaps.of(line.line for line in lines)))
    return _Taken(n, cut._replace(range=span, pools=pools), lines)


def _is_last_line_longer(ledger: Ledger, pinned: InputRef, size: int) -> bool:
    """Did the input end without a newline at `size`, and do the bytes after it belong to the same line?"""
    around = b"".join(ledger.store.stream(pinned.key, size - 1, min(size + 1, pinned.size), match=pinned.etag))
    return len(around) == 2 and b"\n" not in (around[:1], around[1:])


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


def _hashed(chunks: Iterable[bytes], digest: "hashlib._Hash") -> Iterator[bytes]:
    for chunk in chunks:
        digest.update(chunk)
        yield chunk
