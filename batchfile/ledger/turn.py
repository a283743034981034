"""Whose turn it is to do what one process does for a whole batch: plan it, assemble it. A lease on a pseudo-shard."""

from contextlib import suppress
from dataclasses import replace
from typing import Self

from batchfile.errors import BatchDamaged, LeaseLost, RecordDamaged, RecordNewer, StoreError, StoreUnavailable
from batchfile.ledger import lease, shards
from batchfile.ledger.base import Ledger
from batchfile.ledger.cas import ATTEMPTS_MAX, Lost, Stored, load, swap
from batchfile.ledger.records import ShardRecord

RETURN_S = 1.0  # between two tries to give a turn back; doubles, up to a share of the lease
RETURN_SHARE_OF_TTL = 1 / 3
SETTLE_ATTEMPTS = 2  # the first is refused where the holder was asked meanwhile


class Lease:
    """`beat` renews it when a checkpoint is due. A lost turn costs the work again; the commits decide by themselves."""

    def __init__(self, ledger: Ledger, key: str, stored: Stored[ShardRecord], *, sent_at: float) -> None:
        self._ledger = ledger
        self._key = key
        self._stored = stored
        self._seq = stored.record.seq  # of the last write that was tried: two with one number could not be told apart
        self._beaten_at = sent_at  # by our clock, from before the last write that succeeded was sent
        self._return_at = float("-inf")
        self._return_s = RETURN_S

    @classmethod
    def take(cls, ledger: Ledger, key: str, pool: str, runner: str, *, counts: bool = False) -> Self | None:
        """None: it is someone else's. `pool`: the pseudo-pool's name.

        `counts`: the end of its holder counts against the work, so that a silent holder is asked before it does.
        """
        sent_at = ledger.clock.monotonic()
        fresh = replace(
            lease.fresh(pool, 0, 1, lease=ledger.new_id(), runner=runner),
            has_dispatched=True,
            bisect_set=(0,) if counts else (),
        )
        try:
            taken = shards.take(ledger, key, load(ledger, key, ShardRecord), fresh)
        except RecordDamaged as damage:  # it only says whose turn it is: nothing is lost with it
            written = swap(ledger, key, fresh, damage)
            taken = None if isinstance(written, Lost) else written
        return None if taken is None else cls(ledger, key, taken, sent_at=sent_at)

    @property
    def crash_count(self) -> int:
        """How many holders were gone before they were done, or had given it back."""
        return self._stored.record.crash_count

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
        """Let the next try begin at once. What the store does not take now is owed: `settle`."""
        if not self._is_returned(ATTEMPTS_MAX):
            self._ledger.owed.append(self._is_settled)

    def leave(self) -> None:
        """Let the lease expire and count, without anybody being asked: this process lives, and its work has failed."""
        with suppress(StoreError, BatchDamaged):
            swap(self._ledger, self._key, lease.doubted(self._next()), self._stored)

    def _is_settled(self) -> bool:
        now = self._ledger.clock.monotonic()
        if now < self._return_at:
            return False
        if self._is_returned(SETTLE_ATTEMPTS):
            return True
        longest_s = self._ledger.limits.lease_ttl_s * RETURN_SHARE_OF_TTL
        self._return_at, self._return_s = now + self._return_s, min(2 * self._return_s, longest_s)
        return False

    def _is_returned(self, attempts_max: int) -> bool:
        """Is it given back, or lost anyway?"""
        record = self._next()
        released = lease.released(record, seq=record.seq)
        try:
            with suppress(RecordDamaged, RecordNewer):
                swap(self._ledger, self._key, released, self._stored, attempts_max=attempts_max)
        except StoreError:
            return False
        return True

    def _next(self) -> ShardRecord:
        self._seq += 1
        return replace(self._stored.record, seq=self._seq, is_doubted=False)


def settle(ledger: Ledger) -> None:
    """Give back what this process could not give back before. To be called every few seconds."""
    for _ in range(len(ledger.owed)):
        with suppress(IndexError):  # another thread is at it too
            is_settled = ledger.owed.popleft()
            if not is_settled():
                ledger.owed.append(is_settled)
