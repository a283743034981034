"""Whose turn it is to do what one process does for a whole batch: plan it, assemble it. A lease on a pseudo-shard."""

from contextlib import suppress
from dataclasses import replace
from typing import Self

from batchfile.errors import LeaseLost, RecordDamaged, StoreError, StoreUnavailable
from batchfile.ledger import lease, shards
from batchfile.ledger.base import Ledger
from batchfile.ledger.cas import Lost, Stored, load, swap
from batchfile.records import ShardRecord


class Turn:
    """`beat` renews it when a checkpoint is due. A lost turn costs the work again; the commits decide by themselves."""

    def __init__(self, ledger: Ledger, key: str, stored: Stored[ShardRecord], *, sent_at: float) -> None:
        self._ledger = ledger
        self._key = key
        self._stored = stored
        self._seq = stored.record.seq  # of the last write that was tried: two with one number could not be told apart
        self._beaten_at = sent_at  # by our clock, from before the last write that succeeded was sent

    @classmethod
    def take(cls, ledger: Ledger, key: str, pool: str, runner: str) -> Self | None:
        """None: it is someone else's. `pool`: the pseudo-pool's name."""
        sent_at = ledger.clock.monotonic()
        fresh = replace(lease.fresh(pool, 0, 1, lease=ledger.new_id(), runner=runner), has_dispatched=True)
        try:
            taken = shards.take(ledger, key, load(ledger, key, ShardRecord), fresh)
        except RecordDamaged as damage:  # it only says whose turn it is: nothing is lost with it
            written = swap(ledger, key, fresh, damage)
            taken = None if isinstance(written, Lost) else written
        return None if taken is None else cls(ledger, key, taken, sent_at=sent_at)

    @property
    def lapses(self) -> int:
        """How many holders were gone before they were done, or had given it back."""
        return self._stored.record.lapses

    @staticmethod
    def is_held(ledger: Ledger, key: str) -> bool:
        """Is it someone's now? One read, for whoever would prepare for long before taking it."""
        with suppress(RecordDamaged):
            found = load(ledger, key, ShardRecord)
            return found is not None and not shards.is_free(ledger, found)
        return False

    def beat(self) -> None:
        """Raises: LeaseLost where it is someone else's now."""
        now = self._ledger.clock.monotonic()
        if now - self._beaten_at < self._ledger.limits.checkpoint_s:
            return
        try:
            written = swap(self._ledger, self._key, self._next(), self._stored)
        except StoreUnavailable:
            return  # the next beat tries again; a lapsed lease costs the work again, never a result
        if isinstance(written, Lost):
            raise LeaseLost("someone else does this for the batch now")
        self._stored, self._beaten_at = written, now

    def finish(self) -> None:
        """It is done, and nobody's turn again. Raises: StoreUnavailable."""
        swap(self._ledger, self._key, replace(self._next(), state="done"), self._stored)

    def give_back(self) -> None:
        """Let the next try begin at once. Best effort: otherwise it waits for the lease to lapse."""
        record = self._next()
        with suppress(StoreError, RecordDamaged):
            swap(self._ledger, self._key, lease.released(record, seq=record.seq), self._stored)

    def _next(self) -> ShardRecord:
        self._seq += 1
        return replace(self._stored.record, seq=self._seq)
