"""The runner: one process with one engine and one loop.

Eight threads work around the loop (`loop.py`), all on one `SharedState`: the prefetcher (claims and prefetches), the
media thread (starts others, which read images), the preparer (requests with media, and further attempts), the compiler
(requests that wait for their schemas), the checker (slow checks of answers), the checkpointer, the finalizer (ends
batches) and the janitor. The watchdog watches them. The engine never waits for the store and never drains between
shards.
"""

import threading
from collections.abc import Callable
from functools import partial
from typing import NoReturn

import structlog

from batchfile.clock import Clock
from batchfile.engine.base import EngineFactory, EngineInfo, EngineStats
from batchfile.errors import EngineDead, StoreError, StoreFull, StoreUnavailable
from batchfile.ledger.base import Ledger
from batchfile.ledger.records import BatchRecord
from batchfile.long_work import LongWork
from batchfile.runner.answers import check_next
from batchfile.runner.checkpointer import Checkpointer
from batchfile.runner.claimer import Claimer
from batchfile.runner.engine_host import EngineHost
from batchfile.runner.finalizer import Finalizer
from batchfile.runner.loop import Loop
from batchfile.runner.media import MediaThreads
from batchfile.runner.prefetcher import Prefetcher
from batchfile.runner.preparer import prepare_next
from batchfile.runner.state import RunnerOptions, SharedState
from batchfile.runner.stats import RunnerStats
from batchfile.runner.watchdog import TICK_S, Watchdog, end_stuck
from batchfile.schemas.check import CheckProcess

__all__ = ["Runner", "RunnerOptions"]

log = structlog.get_logger()

IDLE_WAIT_S = 0.05  # how long an idle thread sleeps if it is not woken
CHECKPOINTER_WAIT_S = 0.2
FINALIZER_WAIT_S = 0.1
# At shutdown, for the prefetcher, the janitor and a stopped finalizer: the store may be unavailable, and nothing that
# they do is required.
JOIN_S_MAX = 10.0

PAUSE_S = 1.0  # after the store's first error in a row; doubles for a rejection, not if the store does not answer
PAUSE_S_MAX = 15.0
IN_A_ROW_S = 60.0  # an error so long after the last pause starts a new row
REFUSALS_MAX = 8  # in a row, about a minute: then a local run ends and says why


class Runner:
    """Works on batches of a store with an engine from `engine_factory`. Use it for one run.

    `run` returns when it was stopped, or when the batches of `only` have ended.

    >>> batch = client.submit("requests.jsonl", stage="email")
    >>> ledger = batchfile.Ledger(store=batchfile.open_store("./store"))
    >>> options = batchfile.RunnerOptions(runner_id="worker-1", pool="mistral", only=batch.id)
    >>> ended = batchfile.Runner(ledger, batchfile.testing.EchoEngine, options).run()
    >>> batch.wait().counts.succeeded
    2

    `on_stuck`: ends the process, because an engine call does not return; it gets the reason. `on_ended`: called in
    another thread for each batch of `only` as it ends; meanwhile, no other one ends.
    """

    def __init__(
        self,
        ledger: Ledger,
        engine_factory: EngineFactory,
        options: RunnerOptions,
        *,
        on_ended: Callable[[BatchRecord], None] = lambda batch: None,
    ) -> None:
        self.on_stuck: Callable[[str], NoReturn] = end_stuck
        self._ledger = ledger
        self._state = state = SharedState(ledger, options)
        self._claimer = Claimer(state)
        self._engine_host = EngineHost(state, engine_factory)
        self._loop = Loop(state)
        self._prefetcher = Prefetcher(state, self._claimer)
        self._media = MediaThreads(state)
        self._checkpointer = Checkpointer(state, self._claimer)
        is_local = options.only is not None
        # These batches belong to one run: no other batch waits for them.
        self._long_work = LongWork(ledger, options.runner_id, num_threads=0 if is_local else 1, aside=state.aside)
        self._finalizer = Finalizer(state, self._claimer, self._long_work, on_ended)
        self._check_process = CheckProcess()
        self._refusals = _Refusals(ledger.clock, is_local=is_local)
        self._stopped_at: float | None = None

    @property
    def runner_stats(self) -> RunnerStats:
        return self._state.stats

    def run(self) -> BatchRecord | None:
        """Work until stopped. Returns the ended record of `only` (of the last one), or None if they did not all end.

        Raises: EngineDead if engines crash before they serve anything; BatchDamaged.
        """
        state = self._state
        threads: dict[str, threading.Thread] = {}
        self._engine_host.build()
        try:
            with self._ledger.store.hold_process_lock(state.options.runner_id):
                threads = self._start_threads()
                try:
                    while not self._is_over():
                        if not self._step():
                            self._loop.wait(IDLE_WAIT_S)
                finally:
                    self._wind_down(threads)
        finally:
            state.is_over.set()
            self._check_process.close()
            if "checker" in threads:
                threads["checker"].join()
            self._check_process.release()
            self._engine_host.close()
        if state.failure is not None:
            raise state.failure
        return state.last_ended

    def stop(self) -> None:
        """Start nothing more, finish what is in flight, checkpoint, release. From any thread or a signal handler."""
        self._state.is_stopping = True

    def stop_now(self) -> None:
        """Do not even finish what is in flight. Finished results are committed at once, even during an engine step."""
        self._state.is_stopping = self._state.is_stopping_now = True
        self._state.commit_soon()

    @property
    def info(self) -> EngineInfo | None:
        """The engine's description; None before the first engine is ready."""
        return self._state.info

    @property
    def num_in_flight(self) -> int:
        return len(self._state.in_flight)

    @property
    def num_prefetched(self) -> int:
        return len(self._state.ready)

    @property
    def is_building(self) -> bool:
        """No engine is ready: the first one loads, or another after a crash."""
        return not (self._state.has_engine or self._state.is_stopping or self._state.last_ended is not None)

    @property
    def is_assembling(self) -> bool:
        """The results file of a batch is being written in the store."""
        return self._state.is_assembling

    @property
    def is_stopping(self) -> bool:
        return self._state.is_stopping

    @property
    def is_idle(self) -> bool:
        """An engine is ready, and there is nothing for it to do."""
        state = self._state
        is_working = state.in_flight or state.num_checking or len(state.ready)
        return not (self.is_building or state.shards or is_working)

    @property
    def is_drained(self) -> bool:
        """Idle, and this pool has no shard left in any batch that was open at the last look."""
        # The order matters: a shard that is claimed in between is seen by one of the later checks.
        return self._claimer.is_exhausted and not self._state.is_claiming and self.is_idle

    def shards_held(self, num_max: int) -> tuple[str, ...]:
        """As `batch_id/n`."""
        return tuple(f"{shard.batch_id}/{shard.held.record.n}" for shard in list(self._state.shards)[:num_max])

    def set_aside(self) -> dict[str, str]:
        """The batches that are left alone because an object cannot be read or written, and why."""
        return self._state.aside.reasons()

    def engine_stats(self) -> EngineStats:
        """Over all engines since the start. From any thread, a moment old."""
        return self._engine_host.stats()

    @property
    def down_s(self) -> float:
        """For how long the endpoint has been down; 0 while it is up, or only pauses for a moment."""
        return self._engine_host.down_s

    def _step(self) -> bool:
        """One step of the loop; replaces an engine that crashes. False: idle."""
        assert self._state.engine is not None
        try:
            return self._loop.step(self._state.engine)
        except EngineDead as error:
            self._engine_host.replace(error)
            return True

    def _is_over(self) -> bool:
        state = self._state
        if state.failure is not None or state.is_stopping_now or state.last_ended is not None:
            return True
        return state.is_stopping and (not (state.in_flight or state.num_checking) or self._is_grace_over())

    def _is_grace_over(self) -> bool:
        now, options = self._state.now(), self._state.options
        self._stopped_at = now if self._stopped_at is None else self._stopped_at
        grace_s = self._ledger.limits.grace_s if options.grace_s is None else options.grace_s
        return now - self._stopped_at >= grace_s or self.down_s > 0

    def _wind_down(self, threads: dict[str, threading.Thread]) -> None:
        """Stop the threads, commit what is finished, release the rest. The compiler may wait for its process."""
        state, checkpointer = self._state, self._checkpointer
        state.is_over.set()
        state.commit_due.set()
        state.end_due.set()
        state.notify()
        threads["prefetcher"].join(JOIN_S_MAX)
        threads["preparer"].join(JOIN_S_MAX)
        threads["checkpointer"].join()
        checkpointer.release_all()
        if not checkpointer.is_store_away:
            threads["finalizer"].join(JOIN_S_MAX if state.is_stopping else None)
            self._long_work.stop()
        threads["janitor"].join(JOIN_S_MAX if not checkpointer.is_store_away else 0)
        self._engine_host.retire()
        stats = state.stats
        log.info(
            "runner.ended",
            succeeded=stats.succeeded,
            errored=stats.errored,
            steps=stats.num_steps,
            full_steps=stats.num_full_steps,
            engine_deaths=stats.num_engine_deaths,
            leases_lost=stats.num_leases_lost,
        )

    def _start_threads(self) -> dict[str, threading.Thread]:
        state = self._state
        attempts, unchecked, to_check = state.attempts, state.unchecked, state.to_check
        # What each thread repeats, and how it waits when there is nothing more to do at once.
        jobs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "prefetcher": (self._prefetcher.tick, self._wait_for_change),
            "media": (self._media.tick, self._media.wait),
            "preparer": (partial(prepare_next, state, attempts, "preparer"), partial(attempts.wait, IDLE_WAIT_S)),
            "compiler": (partial(prepare_next, state, unchecked, "compiler"), partial(unchecked.wait, IDLE_WAIT_S)),
            "checker": (partial(check_next, state, self._check_process), partial(to_check.wait, IDLE_WAIT_S)),
            "checkpointer": (self._checkpointer.tick, self._wait_for_commit),
            "finalizer": (self._finalizer.tick, self._wait_for_end),
            "janitor": (self._finalizer.janitor, partial(state.is_over.wait, FINALIZER_WAIT_S)),
            "watchdog": (partial(self._watch, Watchdog(state)), partial(state.is_over.wait, TICK_S)),
        }
        threads = {
            name: threading.Thread(target=self._repeat, args=(name, *job), name=name, daemon=True)
            for name, job in jobs.items()
        }
        for thread in threads.values():
            thread.start()
        return threads

    def _repeat(self, name: str, do: Callable[[], object], wait: Callable[[], object]) -> None:
        """The body of each thread: an unexpected error ends the run, with its cause."""
        is_over = self._state.is_over
        while not is_over.is_set():
            try:
                if not do():
                    wait()
            except StoreError as error:
                try:
                    is_over.wait(self._refusals.pause_s(name, error))
                except StoreError as last:
                    self._state.failure = last
                    return
            except BaseException as error:  # noqa: BLE001 the run re-raises it
                self._state.failure = error
                return

    def _wait_for_change(self) -> None:
        with self._state.changed:
            self._state.changed.wait(IDLE_WAIT_S)

    def _wait_for_commit(self) -> None:
        self._state.commit_due.wait(CHECKPOINTER_WAIT_S)
        self._state.commit_due.clear()

    def _wait_for_end(self) -> None:
        self._state.end_due.wait(FINALIZER_WAIT_S)
        self._state.end_due.clear()

    def _watch(self, watchdog: Watchdog) -> None:
        """The shard records tell the next runner of this crash as of any other; bisecting finds the line."""
        reason = watchdog.tick()
        if reason is not None:
            log.error("engine.stuck", reason=reason, in_flight=self.num_in_flight)
            self.on_stuck(reason)


class _Refusals:
    """Decides what a runner does when the store answers nothing, or rejects something that belongs to no batch: it
    waits.

    Counted per thread, by name. `is_local`: a person waits for the run, and can fix the problem. A runner of a fleet
    never ends because of errors: its engine is loaded, and the store worked when it started.
    """

    def __init__(self, clock: Clock, *, is_local: bool) -> None:
        self._clock = clock
        self._is_local = is_local
        self._in_a_row: dict[str, int] = {}
        self._until: dict[str, float] = {}

    def pause_s(self, thread: str, error: StoreError) -> float:
        """How long to wait before the next attempt. Raises: `error` if the run is to end."""
        if isinstance(error, StoreFull) and self._is_local:
            raise error
        if isinstance(error, StoreUnavailable):
            log.warning("store.unavailable", error=str(error))
            return PAUSE_S
        now = self._clock.monotonic()
        is_in_a_row = now - self._until.get(thread, float("-inf")) < IN_A_ROW_S
        num = self._in_a_row[thread] = self._in_a_row.get(thread, 0) * is_in_a_row + 1
        if self._is_local and num >= REFUSALS_MAX:
            raise error
        pause_s = min(PAUSE_S_MAX, PAUSE_S * 2.0 ** (num - 1))
        self._until[thread] = now + pause_s
        log.error("store.refused", error=str(error), again_in_s=pause_s)
        return pause_s
