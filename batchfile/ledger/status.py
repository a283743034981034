"""What a batch is doing, derived from its records: list, read what changed, add up.

A cached record is never replaced by an older one of the same owner, so counts seen through one reader never go back.
"""

from dataclasses import dataclass

from batchfile import layout
from batchfile.ledger.base import Ledger
from batchfile.ledger.batches import read_batch
from batchfile.records import BatchRecord, ShardRecord, decode
from batchfile.words import Counts, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStatus:
    """A batch and how far it is. `num_leased` shards are being worked on now; times in epoch seconds."""

    batch: BatchRecord
    counts: Counts
    usage: Usage
    updated_at: float
    num_records: int = 0
    num_done: int = 0
    num_leased: int = 0

    @property
    def pending(self) -> int:
        return self.batch.total - self.counts.finished


class StatusReader:
    """Remembers the records of open batches, so that a second look costs a listing and what changed."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._seen: dict[str, dict[str, tuple[str, ShardRecord]]] = {}

    def read(self, batch_id: str) -> BatchStatus | None:
        """None: no such batch. Raises: StoreUnavailable."""
        batch = read_batch(self._ledger, batch_id)
        if batch is None:
            self._seen.pop(batch_id, None)
            return None
        if batch.state == "ended":
            self._seen.pop(batch_id, None)
            ended_at = batch.ended_at or batch.created_at
            return BatchStatus(batch=batch, counts=batch.counts, usage=batch.usage, updated_at=ended_at)
        seen = self._seen.setdefault(batch_id, {})
        updated_at = batch.created_at
        for entry in self._ledger.store.list(layout.shards_prefix(batch_id)):
            updated_at = max(updated_at, entry.modified_at)
            known = seen.get(entry.key)
            if known is None or known[0] != entry.etag:
                self._read_record(entry.key, seen)
        records = [record for _, record in seen.values()]
        counts, usage = Counts(), Usage()
        for record in records:
            counts += record.counts
            usage += record.usage
        return BatchStatus(
            batch=batch,
            counts=counts,
            usage=usage,
            updated_at=updated_at,
            num_records=len(records),
            num_done=sum(record.state in {"done", "closed"} for record in records),
            num_leased=sum(record.state == "leased" for record in records),
        )

    def _read_record(self, key: str, seen: dict[str, tuple[str, ShardRecord]]) -> None:
        found = self._ledger.store.get(key)
        if found is None:
            return
        record = decode(found.data, ShardRecord)
        known = seen.get(key)
        if known is None or (record.epoch, record.seq) >= (known[1].epoch, known[1].seq):
            seen[key] = (found.etag, record)
