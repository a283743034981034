"""The input, read once: stored or as it lies, counted, cut into ranges; what can not run is dealt with here.

In a stored input such lines are rejected: they get their errored results now, as parts of the pseudo-pool `_rejected`.
An upload is refused for the first of them.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, suppress

from batchfile.errors import InvalidFile, ObjectMissing, StoreError
from batchfile.ledger import keys
from batchfile.ledger.base import Ledger
from batchfile.ledger.batches import Planned
from batchfile.ledger.inputs import CustomIdsWriter
from batchfile.ledger.records import BatchRecord, InputRef
from batchfile.lines.framing import NO_REQUEST
from batchfile.plan.line_problems import LineProblems
from batchfile.plan.ranges import Cutter, Place, by_line
from batchfile.plan.reuse import hashed, settle
from batchfile.store.base import Writer
from batchfile.types import REQUESTS_MAX, RoutingTable


def plan_input(
    ledger: Ledger,
    batch_id: str,
    input_key: str,
    *,
    routing: RoutingTable,
    stage: str | None = None,
    lines_per_range: int | None = None,
    requests_max: int = REQUESTS_MAX,
    problems: LineProblems | None = None,
    beat: Callable[[], None] = lambda: None,
    name: str = "the file",
    keeps_ids: bool = False,
    reuse: BatchRecord | None = None,
) -> Planned:
    """Plan the object `input_key`, which words call `name`. `lines_per_range` None: what `range_lines` says.

    `keeps_ids`: store the custom_ids next to it, because it is not the store's own and may change. `reuse`: a batch
    that has ended and whose input is the beginning of this one; what succeeded of it is not run again.
    With `problems`, a line that can not run refuses the whole, and all such lines are noted there. `beat` is called
    every MiB or so. Raises: InvalidFile (no request in it, too many, refused; another beginning than that of `reuse`),
    ObjectChanged, ObjectMissing; BatchDamaged of `reuse`.
    """
    entry = ledger.store.head(input_key)
    if entry is None:
        raise ObjectMissing(f"{input_key} is not in the store")
    with CustomIdsWriter(ledger, batch_id) if keeps_ids else nullcontext() as ids:
        cutter = Cutter(
            ledger,
            batch_id,
            routing,
            stage,
            lines_per_range=lines_per_range,
            requests_max=requests_max,
            problems=problems,
            beat=beat,
            ids=ids,
        )
        digest = hashlib.sha256()
        cuts = cutter.read(hashed(_stream(ledger, input_key, entry.etag, beat), digest), entry.size)
        if cutter.total == 0:
            raise InvalidFile(f"{name} {NO_REQUEST}")
        if problems is None or not problems.found:
            cuts = cutter.without_duplicates(cuts, _stream(ledger, input_key, entry.etag, beat))
        if problems is not None and problems.found:
            raise InvalidFile(f"the file has lines that can not run, the first is: {problems.found[0].message}")
        pinned = InputRef(
            key=input_key,
            etag=entry.etag,
            size=entry.size,
            sha256=digest.hexdigest(),
            format=cutter.format or "native",
        )
        if reuse is not None:
            cuts = settle(ledger, batch_id, cutter, cuts, pinned, reuse, beat)
        return cutter.publish(cuts, pinned)


def plan_upload(
    ledger: Ledger,
    batch_id: str,
    chunks: Iterable[bytes],
    *,
    size: int,
    routing: RoutingTable,
    stage: str | None = None,
    place: Place = by_line,
    requests_max: int = REQUESTS_MAX,
    custom_ids: re.Pattern[str] | None = None,
    is_strict: bool = True,
    beat: Callable[[], None] = lambda: None,
) -> Planned:
    """Store JSONL of `params` lines as the input of a batch, and plan it in the same pass. `size`: of it, about.

    All envelopes are right or none will run: nothing that is named is left of a refused upload. `custom_ids`: what
    each must match. Where it is a request's own `model` that leads nowhere, that line alone is rejected.
    Not `is_strict`: as in `plan_input`, lines that can not run are rejected one by one, and either format will do.
    `beat` is called with every chunk, and when the input is read again.
    Raises: RequestRefused, which names the first wrong request by `place`; InvalidFile (no request); TooLarge.
    """
    cutter = Cutter(
        ledger,
        batch_id,
        routing,
        stage,
        refuse_at=place if is_strict else None,
        requests_max=requests_max,
        custom_ids=custom_ids,
        beat=beat,
    )
    key = keys.input_key(batch_id, ledger.new_id()[:12])
    digest = hashlib.sha256()
    stored = _Stored()
    with ledger.store.writer(key, is_new=True) as writer:
        cuts = cutter.read(stored.copied(hashed(_beating(chunks, beat), digest), writer), size)
        if cutter.total == 0:
            is_lines = place is by_line
            raise InvalidFile(f"the input {NO_REQUEST}" if is_lines else "requests: there is none; send at least one")
        etag = writer.commit()
    try:
        cuts = cutter.without_duplicates(cuts, _stream(ledger, key, etag, beat))
    except InvalidFile:
        with suppress(StoreError):
            ledger.store.delete(key)
        raise
    pinned = InputRef(
        key=key,
        etag=etag,
        size=stored.size,
        sha256=digest.hexdigest(),
        format=cutter.format or "native",
    )
    return cutter.publish(cuts, pinned)


def _stream(ledger: Ledger, key: str, etag: str, beat: Callable[[], None]) -> Iterator[bytes]:
    yield from _beating(ledger.store.stream(key, match=etag), beat)


def _beating(chunks: Iterable[bytes], beat: Callable[[], None]) -> Iterator[bytes]:
    for chunk in chunks:
        beat()
        yield chunk


class _Stored:
    """Counts what is written."""

    size = 0

    def copied(self, chunks: Iterable[bytes], writer: Writer) -> Iterator[bytes]:
        for chunk in chunks:
            writer.write(chunk)
            self.size += len(chunk)
            yield chunk
