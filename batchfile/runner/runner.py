"""The runner: one process, one engine, one loop, from its first engine to its last checkpoint.

Six threads work around the loop (`loop.py`): the prefetcher (claims, prefetch), the preparer (further attempts), the
compiler (requests that wait for their schemas), the checkpointer (checkpoints) and the finalizer (ends batches) share a
few lists with it, and the janitor tidies. The engine never waits for the store and never drains between shards.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import structlog

from batchfile.engine.base import Engine, EngineFactory, EngineInfo, EngineStats
from batchfile.errors import BatchDamaged, EngineDead, StoreError
from batchfile.inbox.scan import Inbox
from batchfile.ledger.base import Ledger
from batchfile.ledger.records import BatchRecord
from batchfile.ledger.set_aside import SetAside
from batchfile.long_work import LongWork
from batchfile.runner.active import ActiveShard
from batchfile.runner.checkpointer import Checkpointer
from batchfile.runner.claimer import Claims
from batchfile.runner.engine_host import EngineHost
from batchfile.runner.fair_queue import FairQueue
from batchfile.runner.finalizer import Finalizer
from batchfile.runner.loop import Loop
from batchfile.runner.prefetcher import Prefetcher
from batchfile.runner.ready_queue import ReadyQueue
from batchfile.runner.stats import RunnerStats
from batchfile.runner.store_waits import Refusals
from batchfile.runner.watchdog import Watchdog, end_stuck

log = structlog.get_logger()

IDLE_WAIT_S = 0.05  # how long the loop sleeps where nothing is in flight and nobody wakes it
CHECKPOINTER_WAIT_S = 0.2
FINALIZER_WAIT_S = 0.1
# At the end, of the prefetcher, the janitor and a stopped finalizer: the store may be unavailable, and nothing that
# they do must be done.
JOIN_S_MAX = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerOptions:
    """Who a runner is, and what it works on: the batches of `pool`, or one of them.

    >>> options = batchfile.RunnerOptions(runner_id="worker-1", pool="mistral")

    `only`: work on this batch alone, claim in order, and return when it has ended. `inbox`: for its janitor.
    `grace_s`: what a stopping runner gives its requests in flight; None: as the ledger's limits say.
    """

    runner_id: str
    pool: str
    only: str | None = None
    is_janitor: bool = True
    inbox: Inbox | None = None
    grace_s: float | None = None


class Runner:
    """Works on batches of a store with an engine, which `engine_factory` makes. Made for one run.

    `run` returns when it was stopped, or when the batch of `only` has ended.

    >>> batch = client.submit("requests.jsonl", stage="email")
    >>> ledger = batchfile.Ledger(store=batchfile.open_store("./store"))
    >>> options = batchfile.RunnerOptions(runner_id="worker-1", pool="mistral", only=batch.id)
    >>> ended = batchfile.Runner(ledger, batchfile.testing.EchoEngine, options).run()
    >>> batch.wait().counts.succeeded
    2

    `on_stuck`: ends the process, because a call of the engine does not return; it is given the reason.
    """

    def __init__(self, ledger: Ledger, engine_factory: EngineFactory, options: RunnerOptions) -> None:
        self.runner_stats = RunnerStats()
        self.on_stuck: Callable[[str], NoReturn] = end_stuck
        self._ledger = ledger
        self._options = options
        self._engine: Engine
        self._changed = threading.Condition()
        self._works: list[ActiveShard] = []
        self._ready_queue = ReadyQueue()
        self._stopped_at: float | None = None
        self._stop = threading.Event()
        self._stop_now = threading.Event()
        self._threads_over = threading.Event()
        self._failure: BaseException | None = None
        is_alone = options.only is not None
        self._aside = SetAside(ledger, only=options.only)
        self._claims = Claims(
            ledger, options.pool, options.runner_id, only=options.only, in_order=is_alone, aside=self._aside
        )
        self._engine_host = EngineHost(engine_factory, ledger.clock, self.runner_stats, self._use)
        dropped: list[ActiveShard] = []
        self._checkpointer = Checkpointer(
            ledger, self._claims, self._works, self.runner_stats, dropped.append, self._aside
        )
        self._prefetcher = Prefetcher(
            ledger,
            self._claims,
            self._ready_queue,
            self._works,
            self.runner_stats,
            self._changed,
            self._aside,
            on_return=self._checkpointer.wake.set,
        )
        self._refusals = Refusals(ledger.clock, is_local=is_alone)
        self._loop = Loop(
            ledger.clock,
            ledger.limits.lease_ttl_s,
            self._ready_queue,
            self._changed,
            dropped,
            self.runner_stats,
            is_full=self._prefetcher.is_full,
            on_settled=self._checkpointer.wake.set,
            on_served=self._engine_host.has_served,
            prepare_again=self._prefetcher.prepare_again,
        )
        # Where there is one batch alone, nothing waits for it.
        num_threads = 0 if options.only is not None else 1
        self._long_work = LongWork(ledger, options.runner_id, num_threads=num_threads, aside=self._aside)
        self._watchdog = Watchdog(
            [
                self._loop.calls,
                self._prefetcher.calls,
                self._prefetcher.attempts.calls,
                self._prefetcher.unchecked.calls,
            ],
            ledger.limits.engine_stall_s,
            on_commit=self._commit_soon,
            is_committed=lambda: not any(work.finished or work.accused is not None for work in list(self._works)),
            on_stuck=self._end_stuck,
        )
        self._finalizer = Finalizer(
            ledger,
            self._claims,
            self._checkpointer,
            options.runner_id,
            self._long_work,
            is_janitor=options.is_janitor,
            only=options.only,
            inbox=options.inbox,
            is_stopped=self._stop.is_set,
            aside=self._aside,
        )

    def run(self) -> BatchRecord | None:
        """Work until told to stop. Returns the ended record of `only`, or None where it did not end here.

        Raises: EngineDead where engines die before they serve anything; BatchDamaged.
        """
        self._engine = self._engine_host.build()
        try:
            with self._ledger.store.hold_process_lock(self._options.runner_id):
                threads = self._start_threads()
                over = threading.Event()
                threading.Thread(target=self._watchdog.run, args=(over,), name="watchdog", daemon=True).start()
                try:
                    self._work()
                finally:
                    over.set()
                    self._wind_down(threads)
        finally:
            self._threads_over.set()
            self._loop.checks.close()
            self._engine.close()
        if self._failure is not None:
            raise self._failure
        return self._finalizer.ended

    def _work(self) -> None:
        """The loop itself."""
        while not self._is_over():
            try:
                is_busy = self._loop.turn(self._engine)
            except EngineDead as error:
                self._engine = self._replace(self._engine, error)
                continue
            if not is_busy:
                self._loop.wait(IDLE_WAIT_S)

    def stop(self) -> None:
        """Start nothing more, finish what is in flight, checkpoint, release. From any thread or a signal handler."""
        self._prefetcher.is_stopped = self._loop.is_stopped = True
        self._stop.set()

    def stop_now(self) -> None:
        """Do not even finish what is in flight. What is finished is committed at once, even while a step lasts."""
        self.stop()
        self._stop_now.set()
        self._commit_soon()

    def _commit_soon(self) -> None:
        """What is finished is due now, and in this process from now on."""
        self._checkpointer.is_urgent = True
        self._checkpointer.wake.set()

    def _end_stuck(self, reason: str) -> None:
        """The record of each shard tells the next runner of this death, as of any other; bisection finds the line."""
        log.error("engine.stuck", reason=reason, in_flight=self.num_in_flight)
        self.on_stuck(reason)

    @property
    def info(self) -> EngineInfo | None:
        """Of the engine; None before the first one is ready."""
        return self._loop.info

    @property
    def num_in_flight(self) -> int:
        return len(self._loop.in_flight)

    @property
    def num_prefetched(self) -> int:
        return len(self._ready_queue)

    @property
    def is_building(self) -> bool:
        """There is no engine now: the first one loads, or one died and the next one does."""
        return self._engine_host.is_empty and not self._stop.is_set() and self._finalizer.ended is None

    @property
    def is_assembling(self) -> bool:
        """The results file of a batch is being written in the store."""
        return self._finalizer.is_assembling

    @property
    def is_stopping(self) -> bool:
        return self._stop.is_set()

    @property
    def is_idle(self) -> bool:
        """An engine is ready, and there is nothing for it to do."""
        is_working = self._loop.in_flight or len(self._loop.checks) or len(self._ready_queue)
        return not (self.is_building or self._works or is_working)

    @property
    def is_drained(self) -> bool:
        """Idle, and no shard of this pool is left in any batch that was open at the last look."""
        # In this order: a shard that is claimed in between is seen by one of the later looks.
        return self._claims.is_settled and not self._prefetcher.is_claiming and self.is_idle

    def shards_held(self, num_max: int) -> tuple[str, ...]:
        """As `batch_id/n`."""
        works = list(self._works)[:num_max]
        return tuple(f"{work.held.batch.batch_id}/{work.held.record.n}" for work in works)

    def set_aside(self) -> dict[str, str]:
        """The batches that are left alone because something of them cannot be read or written, and why."""
        return self._aside.reasons()

    def engine_stats(self) -> EngineStats:
        """Over all engines since the start. From any thread, a moment old."""
        return self._engine_host.stats()

    @property
    def down_s(self) -> float:
        """For how long the endpoint has been down; 0 while it is up, or only pauses for a moment."""
        return self._engine_host.down_s

    def _is_over(self) -> bool:
        if self._failure is not None or self._stop_now.is_set():
            return True
        if self._finalizer.ended is not None:
            return True
        is_done = not self._loop.in_flight and not len(self._loop.checks)
        return self._stop.is_set() and (is_done or self._is_grace_over())

    def _is_grace_over(self) -> bool:
        now = self._ledger.clock.monotonic()
        self._stopped_at = now if self._stopped_at is None else self._stopped_at
        grace_s = self._options.grace_s
        grace_s = self._ledger.limits.grace_s if grace_s is None else grace_s
        return now - self._stopped_at >= grace_s or self.down_s > 0

    def _use(self, engine: Engine) -> None:
        self._loop.use(engine)
        self._prefetcher.use(engine.prepare, engine.info.num_slots, engine.info.max_in_flight)

    def _replace(self, engine: Engine, error: EngineDead) -> Engine:
        """Bury a dead engine, put its requests back, and build the next.

        One that dies while the runner stops may have met what stops the runner: it blames none and has no successor.
        """
        log.error("engine.died", error=str(error), in_flight=self.num_in_flight)
        self._prefetcher.has_engine = False
        self._engine_host.on_engine_death(engine, error)
        is_last = self._stop.is_set()
        self._loop.requeue_in_flight(has_successor=not is_last)
        if is_last:
            return engine
        return self._engine_host.rebuild(self._stop.is_set)

    def _wind_down(self, threads: list[threading.Thread]) -> None:
        """Stop the threads, commit what is finished, put back the rest."""
        self._prefetcher.is_stopped = self._checkpointer.is_ending = True
        self._threads_over.set()
        self._checkpointer.wake.set()
        with self._changed:
            self._changed.notify_all()
        prefetcher, checkpointer, finalizer, janitor, preparer, _ = threads  # the last one may wait for a compiler
        prefetcher.join(JOIN_S_MAX)
        preparer.join(JOIN_S_MAX)
        checkpointer.join()
        self._checkpointer.release_all()
        if not self._checkpointer.is_store_away:
            finalizer.join(JOIN_S_MAX if self._stop.is_set() else None)
            self._long_work.stop()
        janitor.join(JOIN_S_MAX if not self._checkpointer.is_store_away else 0)
        self._engine_host.count_steps(self._engine)
        runner_stats = self.runner_stats
        log.info(
            "runner.ended",
            succeeded=runner_stats.succeeded,
            errored=runner_stats.errored,
            steps=runner_stats.num_steps,
            full_steps=runner_stats.num_full_steps,
            engine_deaths=runner_stats.num_engine_deaths,
            leases_lost=runner_stats.num_leases_lost,
        )

    def _start_threads(self) -> list[threading.Thread]:
        jobs: list[tuple[str, Callable[[], None]]] = [
            ("prefetcher", self._prefetch_forever),
            ("checkpointer", self._checkpoint_forever),
            ("finalizer", self._finalize_forever),
            ("janitor", self._janitor_forever),
            ("preparer", partial(self._prepare_forever, self._prefetcher.attempts)),
            ("compiler", partial(self._prepare_forever, self._prefetcher.unchecked)),
        ]
        threads = [
            threading.Thread(target=self._guarded, args=(name, job), name=name, daemon=True) for name, job in jobs
        ]
        for thread in threads:
            thread.start()
        return threads

    def _guarded(self, name: str, job: Callable[[], None]) -> None:
        """The top of each thread: what is not expected ends the run, with its cause."""
        while not self._threads_over.is_set():
            try:
                return job()
            except StoreError as error:
                try:
                    pause_s = self._refusals.pause_s(name, error)
                except StoreError as last:
                    self._failure = last
                    return None
                self._threads_over.wait(pause_s)
            except BaseException as error:  # noqa: BLE001 the run re-raises it
                self._failure = error
                return None
        return None

    def _prefetch_forever(self) -> None:
        while not self._threads_over.is_set():
            if not self._prefetcher.tick():
                with self._changed:
                    self._changed.wait(IDLE_WAIT_S)

    def _prepare_forever(self, queue: FairQueue) -> None:
        while not self._threads_over.is_set():
            if not self._prefetcher.prepare_next(queue):
                queue.wait(IDLE_WAIT_S)

    def _checkpoint_forever(self) -> None:
        while not self._threads_over.is_set():
            self._checkpointer.wake.wait(CHECKPOINTER_WAIT_S)
            self._checkpointer.wake.clear()
            self._checkpointer.tick()

    def _janitor_forever(self) -> None:
        while not self._threads_over.wait(FINALIZER_WAIT_S):
            self._finalizer.janitor()

    def _finalize_forever(self) -> None:
        while not self._threads_over.wait(FINALIZER_WAIT_S):
            self._finalizer.tick()
            if self._finalizer.damaged is not None:
                raise BatchDamaged(self._finalizer.damaged)
