"""Commits finished results in the background, gives shards back at a stop and drops lost ones.

A thread calls `tick`, which does what is due. The engine never waits for it.
"""

from contextlib import suppress

import structlog

from batchfile.errors import BatchDamaged, LeaseLost, ShardClosed, StoreError, StoreFull
from batchfile.ledger import lease, shards
from batchfile.runner.claimer import Claimer
from batchfile.runner.shard_span import trace_shard
from batchfile.runner.state import ActiveShard, SharedState

log = structlog.get_logger()

PART_BYTES = 4 * 1024 * 1024  # finished results of this size are checkpointed early
AWAY_S_MAX = 10.0  # at shutdown; after this the leases expire, as they would if the process were killed
RETRY_S = 1.0  # before a failed commit is tried again; doubles
RETRY_S_MAX = 5.0
FAILURES_BEFORE_ASIDE = 2  # commits of one shard in a row, each tried several times; then its batch is set aside
HEARTBEAT_SHARE_OF_TTL = 1 / 6  # the lease of a shard without results is renewed this often: every 15 s of 90


class Checkpointer:
    def __init__(self, state: SharedState, claimer: Claimer) -> None:
        self._state = state
        self._ledger = state.ledger
        self._claimer = claimer
        self._away_since: float | None = None  # monotonic: when the first of the failed writes in a row began

    def tick(self) -> None:
        """Checkpoint each shard that is due. Does nothing once the threads are to end."""
        for shard in list(self._state.shards):
            if self._state.is_over.is_set():
                return
            if shard.is_dropped:
                self._drop(shard)
            elif shard.is_to_return:
                self._put_back(shard)
            elif self._is_due(shard):
                self._checkpoint(shard)

    def release_all(self) -> None:
        """Commit finished results and release every shard. Best effort: a lease that cannot be released expires.

        The rest is skipped if the store stays unavailable.
        """
        for shard in list(self._state.shards):
            if not shard.is_dropped:
                with suppress(StoreFull):
                    self._checkpoint(shard)
            if shard.left > 0 and not shard.is_dropped and not shard.finished:
                self._release(shard)
            if shard in self._state.shards:
                self._state.shards.remove(shard)
            if self.is_store_away and self._state.shards:
                log.warning("shards.left_to_expire", shards=len(self._state.shards))
                self._state.shards.clear()
                return

    def _put_back(self, shard: ActiveShard) -> None:
        """Commit what there is and release a shard that has nothing left to dispatch. Repeats until it works."""
        if self._state.now() < shard.retry_at:
            return
        if shard.finished:
            self._checkpoint(shard)
            if shard.finished or shard not in self._state.shards:
                return
        if self._release(shard):
            self._state.shards.remove(shard)
            self._claimer.forget(shard.batch_id, shard.held.record.n)

    def _release(self, shard: ActiveShard) -> bool:
        """Is it released, or lost anyway?"""
        started_at = self._state.now()
        with shard.commit_lock:
            try:
                shards.release(self._ledger, shard.held)
                trace_shard(self._state, shard)
            except (LeaseLost, BatchDamaged):
                self._saw_store(started_at, is_there=True)
            except StoreError as error:
                self._saw_store(started_at, is_there=False)
                shard.retry_at = started_at + RETRY_S
                log.warning("shard.not_released", batch_id=shard.batch_id, shard=shard.held.name, error=str(error))
                return False
        return True

    @property
    def is_store_away(self) -> bool:
        """The store has answered no write for so long that a process that is ending stops waiting."""
        return self._away_since is not None and self._state.now() - self._away_since >= AWAY_S_MAX

    def _saw_store(self, started_at: float, *, is_there: bool) -> None:
        if is_there:
            self._away_since = None
        elif self._away_since is None:
            self._away_since = started_at

    def _is_due(self, shard: ActiveShard) -> bool:
        now = self._state.now()
        if now < shard.retry_at:
            return False
        if shard.wants_to_announce and lease.must_announce(shard.held.record):
            return True
        if shard.accused is not None or shard.left == 0 or shard.finished_bytes >= PART_BYTES:
            return True
        if shard.finished and self._state.is_urgent:
            return True
        if shard.finished:
            return now - shard.committed_at >= self._ledger.limits.checkpoint_s
        return now - shard.held.written_at >= self._ledger.limits.lease_ttl_s * HEARTBEAT_SHARE_OF_TTL

    def _checkpoint(self, shard: ActiveShard) -> None:
        started_at = shard.committed_at = self._state.now()
        with shard.commit_lock:
            finished, accused = list(shard.finished), shard.accused
            try:
                is_dispatching = shard.has_dispatched or shard.wants_to_announce
                shards.checkpoint(
                    self._ledger,
                    shard.held,
                    finished,
                    has_dispatched=is_dispatching,
                    accused=accused,
                    fingerprints=self._state.fingerprints,
                )
            except (LeaseLost, BatchDamaged) as error:
                if isinstance(error, BatchDamaged):  # its holder is unknown now; the other shards continue
                    log.error("shard.unreadable", batch_id=shard.batch_id, shard=shard.held.name, error=str(error))
                shard.is_closed = isinstance(error, ShardClosed)
                self._drop(shard)
                return
            except StoreFull:
                raise
            except StoreError as error:
                self._saw_store(started_at, is_there=False)
                log.warning("checkpoint.failed", batch_id=shard.batch_id, shard=shard.held.name, error=str(error))
                self._set_back(shard, error)
                return
            self._saw_store(started_at, is_there=True)
            self._state.forget(shard, len(finished))
            if shard.accused == accused:
                shard.accused = None
        if shard.num_failures:
            shard.num_failures, shard.retry_at = 0, float("-inf")
            self._state.aside.worked(shard.batch_id, "commit")
        self._state.stats.checkpoint_s.add(self._state.now() - started_at)
        if shard.held.record.state == "done":
            self._state.shards.remove(shard)
            if not self._state.is_working_on(shard.batch_id):
                self._state.end_due.set()
            trace_shard(self._state, shard)
            counts = shard.held.record.counts
            log.info(
                "shard.done",
                batch_id=shard.batch_id,
                shard=shard.held.name,
                epoch=shard.held.record.epoch,
                succeeded=counts.succeeded,
                errored=counts.errored,
            )

    def _set_back(self, shard: ActiveShard, error: StoreError) -> None:
        """Try again soon, even after the lease expires: the write decides. Raises: as `SetAside.put`."""
        shard.num_failures += 1
        longest_s = min(RETRY_S_MAX, self._ledger.limits.lease_ttl_s * HEARTBEAT_SHARE_OF_TTL)
        pause_s = min(RETRY_S * 2.0 ** min(shard.num_failures - 1, 16), longest_s)
        shard.retry_at = self._state.now() + pause_s
        if shard.num_failures >= FAILURES_BEFORE_ASIDE and not self._state.is_over.is_set():
            self._state.aside.put(shard.batch_id, "commit", error)

    def _drop(self, shard: ActiveShard) -> None:
        shard.is_dropped = True
        trace_shard(self._state, shard, "the shard is closed" if shard.is_closed else "the lease is lost")
        if shard.is_closed:
            log.info("shard.closed", batch_id=shard.batch_id, shard=shard.held.name)
        else:
            self._state.stats.num_leases_lost += 1
            log.warning("lease.lost", batch_id=shard.batch_id, shard=shard.held.name)
        self._claimer.forget(shard.batch_id, shard.held.record.n)
        self._state.shards.remove(shard)
        self._state.has_dropped = True
