"""Reads the results of a batch as they are committed, before it has ended; each call returns only newer ones.

Follows the records: the parts named by a record count, and in one shard they are only ever added. Once the batch has
ended, the rest comes from its results file. Memory: one part, and the cursor.
"""

import hashlib
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import structlog

from batchfile.errors import RecordDamaged
from batchfile.ledger import keys
from batchfile.ledger.base import Ledger
from batchfile.ledger.batches import read_batch, read_plan
from batchfile.ledger.cas import parse
from batchfile.ledger.records import BatchRecord, PartRef, ShardRecord
from batchfile.lines.framing import iter_lines
from batchfile.lines.result import RESULT_BYTES_MAX, decode_part

log = structlog.get_logger()


class LiveLine(NamedTuple):
    """A native result line (no newline) and the index of its request."""

    number: int
    result: bytes


@dataclass(slots=True)
class Cursor:
    """The position of a reader in one batch: a bit for each request and a few bytes for each shard. For one thread.

    `num_given` results so far; `is_over`: there will be no more.
    """

    num_given: int = 0
    is_over: bool = False
    given: bytearray = field(default_factory=bytearray, repr=False)
    firsts: list[int] = field(default_factory=list, repr=False)  # range -> the index of its first request
    etags: dict[str, str] = field(default_factory=dict, repr=False)  # of records whose parts were all returned
    num_parts: dict[str, int] = field(default_factory=dict, repr=False)  # parts that were returned, by the record's key


def iter_live(ledger: Ledger, batch_id: str, cursor: Cursor) -> Iterator[LiveLine]:
    """What is committed and was not returned to this cursor: shard by shard while open, else in input order.

    Ends with what there is now; call it again later with the same cursor. A batch that does not exist has no results.
    Raises: StoreUnavailable, BatchDamaged.
    """
    batch = read_batch(ledger, batch_id)
    if batch is not None and batch.plan_key and batch.state != "ended":
        if (yield from _from_parts(ledger, batch, cursor)):
            return
        batch = read_batch(ledger, batch_id)  # a part is gone, as happens when a batch ends
    if batch is not None and batch.state == "ended" and batch.results is not None:
        lines = iter_lines(ledger.store.stream(batch.results.key), line_bytes_max=RESULT_BYTES_MAX)
        yield from _not_given(batch, cursor, ((number, line.data or b"") for number, line in enumerate(lines)))
    cursor.is_over = batch is None or batch.state == "ended"


def _from_parts(ledger: Ledger, batch: BatchRecord, cursor: Cursor) -> Generator[LiveLine, None, bool]:
    """False if a part is gone."""
    is_whole = True
    cursor.firsts = cursor.firsts or [span.first for span in read_plan(ledger, batch).ranges]
    for entry in ledger.store.list(keys.shards_prefix(batch.batch_id)):
        if cursor.etags.get(entry.key) == entry.etag:
            continue
        found = ledger.store.get(entry.key)
        if found is None:
            continue
        try:
            stored = parse(ledger, entry.key, found, ShardRecord)
        except RecordDamaged as error:  # its results come with the results file, or are lost
            log.error("batch.damaged", batch_id=batch.batch_id, error=str(error))
            stored = None
        if stored is None:
            continue
        record = stored.record
        for part in record.parts[cursor.num_parts.get(entry.key, 0) :]:
            data = _read(ledger, part)
            if data is None:
                is_whole = False
                break
            first = cursor.firsts[record.n]
            yield from _not_given(batch, cursor, ((first + item.line, item.result) for item in decode_part(data)))
            cursor.num_parts[entry.key] = cursor.num_parts.get(entry.key, 0) + 1
        else:
            cursor.etags[entry.key] = stored.etag
    return is_whole


def _read(ledger: Ledger, part: PartRef) -> bytes | None:
    """None if it is missing or does not match its record: its requests get their results at the end."""
    found = ledger.store.get(part.key)
    return None if found is None or hashlib.sha256(found.data).hexdigest() != part.sha256 else found.data


def _not_given(batch: BatchRecord, cursor: Cursor, lines: Iterable[tuple[int, bytes]]) -> Iterator[LiveLine]:
    if not cursor.given:
        cursor.given = bytearray(batch.total // 8 + 1)
    for number, result in lines:
        place, bit = divmod(number, 8)
        if not cursor.given[place] >> bit & 1:
            cursor.given[place] |= 1 << bit
            cursor.num_given += 1
            yield LiveLine(number, result)
