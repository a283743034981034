"""Keeps what is held: checkpoints behind the engine, gives shards back at a stop, drops what was lost.

`tick` does what is due; a thread repeats it. The engine never waits for it.
"""

import threading
from collections.abc import Callable
from contextlib import suppress

import structlog

from batchfile.errors import BatchDamaged, LeaseLost, ShardClosed, StoreError, StoreFull
from batchfile.ledger import lease, shards
from batchfile.ledger.base import Ledger
from batchfile.ledger.set_aside import SetAside
from batchfile.runner.active import ActiveShard
from batchfile.runner.claimer import Claims
from batchfile.runner.stats import RunnerStats

log = structlog.get_logger()

PART_BYTES = 4 * 1024 * 1024  # finished results of this size are checkpointed before their time
AWAY_S_MAX = 10.0  # at an end: then what is held lapses, as it would if this process were killed
RETRY_S = 1.0  # before a commit that failed is tried again; doubles
RETRY_S_MAX = 5.0
FAILURES_BEFORE_ASIDE = 2  # commits of one shard that fail in a row, each tried several times: then no more is claimed
HEARTBEAT_SHARE_OF_TTL = 1 / 6  # a shard without news is rewritten this often: every 15 s of 90


class Checkpointer:
    """Shares `works` with the prefetcher. `on_dropped` tells the loop to abort a lost shard's requests."""

    def __init__(
        self,
        ledger: Ledger,
        claims: Claims,
        works: list[ActiveShard],
        runner_stats: RunnerStats,
        on_dropped: Callable[[ActiveShard], None],
        aside: SetAside,
    ) -> None:
        self._ledger = ledger
        self._aside = aside
        self._claims = claims
        self._works = works
        self._runner_stats = runner_stats
        self._on_dropped = on_dropped
        self._checkpointed_at: dict[int, float] = {}
        self._away_since: float | None = None  # monotonic: when the first of the writes in a row that failed was begun
        self.is_ending = False
        self.is_urgent = False  # the process ends in a moment: what is finished is due now
        self.wake = threading.Event()

    def tick(self) -> None:
        """Checkpoint each shard that is due. None more once `is_ending`."""
        for work in list(self._works):
            if self.is_ending:
                return
            if work.is_dropped:
                self._drop(work)
            elif work.is_to_return:
                self._put_back(work)
            elif self._is_due(work):
                self._checkpoint(work)

    def release_all(self) -> None:
        """Commit what is finished and put every shard back. Best effort: what fails lapses by itself.

        So does the rest where the store stays away.
        """
        for work in list(self._works):
            if not work.is_dropped:
                with suppress(StoreFull):
                    self._checkpoint(work)
            if work.left > 0 and not work.is_dropped and not work.finished:
                self._release(work)
            if work in self._works:
                self._works.remove(work)
            if self.is_store_away and self._works:
                log.warning("shards.left_to_lapse", shards=len(self._works))
                self._works.clear()
                return

    def _put_back(self, work: ActiveShard) -> None:
        """Nothing of it waits to be dispatched: commit what there is, and let anyone claim it. Again until it works."""
        if self._ledger.clock.monotonic() < work.retry_at:
            return
        if work.finished:
            self._checkpoint(work)
            if work.finished or work not in self._works:
                return
        if self._release(work):
            self._retire(work)
            self._claims.forget(work.held.batch.batch_id, work.held.record.n)

    def _release(self, work: ActiveShard) -> bool:
        """Is it given back, or lost anyway?"""
        started_at = self._ledger.clock.monotonic()
        with work.lock:
            try:
                shards.release(self._ledger, work.held)
            except (LeaseLost, BatchDamaged):
                self._saw_store(started_at, is_there=True)
            except StoreError as error:
                self._saw_store(started_at, is_there=False)
                work.retry_at = started_at + RETRY_S
                log.warning("shard.not_released", shard=work.held.record.n, error=str(error))
                return False
        return True

    @property
    def is_store_away(self) -> bool:
        """It has answered no write for so long that a process that ends waits no more."""
        return self._away_since is not None and self._ledger.clock.monotonic() - self._away_since >= AWAY_S_MAX

    def _saw_store(self, started_at: float, *, is_there: bool) -> None:
        if is_there:
            self._away_since = None
        elif self._away_since is None:
            self._away_since = started_at

    def is_working(self, batch_id: str) -> bool:
        return any(work.held.batch.batch_id == batch_id for work in self._works)

    def _is_due(self, work: ActiveShard) -> bool:
        now = self._ledger.clock.monotonic()
        if now < work.retry_at:
            return False
        if work.wants_to_announce and lease.must_announce(work.held.record):
            return True
        if work.accused is not None or work.left == 0 or work.finished_bytes >= PART_BYTES:
            return True
        if work.finished and self.is_urgent:
            return True
        if work.finished:
            return now - self._checkpointed_at.get(id(work), work.held.written_at) >= self._ledger.limits.checkpoint_s
        return now - work.held.written_at >= self._ledger.limits.lease_ttl_s * HEARTBEAT_SHARE_OF_TTL

    def _checkpoint(self, work: ActiveShard) -> None:
        started_at = self._checkpointed_at[id(work)] = self._ledger.clock.monotonic()
        with work.lock:
            finished, accused = list(work.finished), work.accused
            try:
                is_dispatching = work.has_dispatched or work.wants_to_announce
                shards.checkpoint(self._ledger, work.held, finished, has_dispatched=is_dispatching, accused=accused)
            except LeaseLost as error:
                work.is_closed = isinstance(error, ShardClosed)
                self._drop(work)
                return
            except BatchDamaged as error:  # nobody can tell whose it is now; the other shards go on
                log.error(
                    "shard.unreadable", batch_id=work.held.batch.batch_id, shard=work.held.record.n, error=str(error)
                )
                self._drop(work)
                return
            except StoreFull:
                raise
            except StoreError as error:
                self._saw_store(started_at, is_there=False)
                log.warning("checkpoint.failed", shard=work.held.record.n, error=str(error))
                self._set_back(work, error)
                return
            self._saw_store(started_at, is_there=True)
            work.forget(len(finished))
            if work.accused == accused:
                work.accused = None
        if work.num_failures:
            work.num_failures, work.retry_at = 0, float("-inf")
            self._aside.worked(work.held.batch.batch_id, "commit")
        self._runner_stats.checkpoint_s.add(self._ledger.clock.monotonic() - started_at)
        if work.held.record.state == "done":
            self._retire(work)
            counts = work.held.record.counts
            log.info(
                "shard.done",
                batch_id=work.held.batch.batch_id,
                shard=work.held.record.n,
                epoch=work.held.record.epoch,
                succeeded=counts.succeeded,
                errored=counts.errored,
            )

    def _set_back(self, work: ActiveShard, error: StoreError) -> None:
        """Try again soon, while the lease lasts and after: the write decides. Raises: as `SetAside.put`."""
        work.num_failures += 1
        longest_s = min(RETRY_S_MAX, self._ledger.limits.lease_ttl_s * HEARTBEAT_SHARE_OF_TTL)
        pause_s = min(RETRY_S * 2.0 ** min(work.num_failures - 1, 16), longest_s)
        work.retry_at = self._ledger.clock.monotonic() + pause_s
        if work.num_failures >= FAILURES_BEFORE_ASIDE and not self.is_ending:
            self._aside.put(work.held.batch.batch_id, "commit", error)

    def _drop(self, work: ActiveShard) -> None:
        work.is_dropped = True
        if work.is_closed:
            log.info("shard.closed", batch_id=work.held.batch.batch_id, shard=work.held.record.n)
        else:
            self._runner_stats.num_leases_lost += 1
            log.warning("lease.lost", batch_id=work.held.batch.batch_id, shard=work.held.record.n)
        self._claims.forget(work.held.batch.batch_id, work.held.record.n)
        self._retire(work)
        self._on_dropped(work)

    def _retire(self, work: ActiveShard) -> None:
        self._checkpointed_at.pop(id(work), None)
        self._works.remove(work)
