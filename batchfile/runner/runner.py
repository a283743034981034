"""The runner: one process, one engine, one loop. Keep the engine full, step it, hand over what finished.

Three threads work around the loop and share a few lists with it: the feeder (claims, prefetch), the keeper
(checkpoints) and the finisher (assembly, stewarding). The engine never waits for the store and never drains
between shards.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from batchfile.engine.base import Engine, EngineFactory, EngineInfo, EngineStats, Finished
from batchfile.errors import BatchDamaged, EngineDead, InvalidRequest, StoreFull, StoreUnavailable
from batchfile.ledger import lease
from batchfile.ledger.base import Ledger
from batchfile.ledger.inbox import Inbox
from batchfile.lines.part import FinishedLine
from batchfile.lines.result import encode_result
from batchfile.records import BatchRecord
from batchfile.runner import crashes, fitting
from batchfile.runner.claims import Claims
from batchfile.runner.feeder import Feeder
from batchfile.runner.finisher import Finisher
from batchfile.runner.fitting import Fitting
from batchfile.runner.keeper import Keeper
from batchfile.runner.seat import Seat
from batchfile.runner.tally import Tally
from batchfile.runner.window import Window
from batchfile.runner.work import Item, ShardWork
from batchfile.words import Completion, Failure, Outcome, Request, Usage

log = structlog.get_logger()

IDLE_WAIT_S = 0.05  # how long the loop sleeps where nothing is in flight and nobody wakes it
FILL_WAIT_S_MAX = 0.25  # how long an empty engine waits for its slots to fill
KEEPER_WAIT_S = 0.2
FINISHER_WAIT_S = 0.1
STORE_RETRY_S = 1.0

_ENGINE_CRASH = Failure(
    type="engine_crash",
    message="This request ended the engine each time it ran, the last time alone; it was not tried again.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerOptions:
    """`only`: work on this batch alone, claim in order, and return when it has ended. `inbox`: for its steward."""

    runner_id: str
    pool: str
    only: str | None = None
    is_steward: bool = True
    inbox: Inbox | None = None


class Runner:
    """`run` returns when it was stopped, or when the batch of `only` has ended. Made for one run."""

    def __init__(self, ledger: Ledger, engine_factory: EngineFactory, options: RunnerOptions) -> None:
        self.tally = Tally()
        self.info: EngineInfo | None = None
        self._ledger = ledger
        self._options = options
        self._engine: Engine
        self._changed = threading.Condition()
        self._works: list[ShardWork] = []
        self._window = Window()
        self._in_flight: dict[int, Item] = {}
        self._busy_until: float | None = None  # up to when `tally.busy_s` counts; None: nothing was in flight
        self._gpu_s_each = 0.0  # seconds of GPUs, shared by those in flight, one share after the other
        self._dropped: list[ShardWork] = []
        self._fills_since: float | None = None
        self._is_held_back = False
        self._stopped_at: float | None = None
        self._stop = threading.Event()
        self._stop_now = threading.Event()
        self._threads_over = threading.Event()
        self._failure: BaseException | None = None
        self._claims = Claims(
            ledger, options.pool, options.runner_id, only=options.only, in_order=options.only is not None
        )
        self._feeder = Feeder(ledger, self._claims, self._window, self._works, self.tally, self._changed)
        self._seat = Seat(engine_factory, ledger.clock, self.tally, self._use)
        self._keeper = Keeper(ledger, self._claims, self._works, self.tally, self._dropped.append)
        self._finisher = Finisher(
            ledger,
            self._claims,
            self._keeper,
            options.runner_id,
            is_steward=options.is_steward,
            only=options.only,
            inbox=options.inbox,
        )

    def run(self) -> BatchRecord | None:
        """Work until told to stop. Returns the ended record of `only`, or None where it did not end here.

        Raises: EngineDead where engines die before they serve anything; BatchDamaged.
        """
        self._engine = self._seat.build()
        try:
            with self._ledger.store.hold(self._options.runner_id):
                threads = self._start_threads()
                try:
                    self._work()
                finally:
                    self._wind_down(threads)
        finally:
            self._threads_over.set()
            self._engine.close()
        if self._failure is not None:
            raise self._failure
        return self._finisher.ended.get(self._options.only or "")

    def turn(self, engine: Engine) -> bool:
        """Once around: drop what was lost, fill the engine, step it, settle what finished. False: idle."""
        self._abort_dropped(engine)
        self._fill(engine)
        if not self._in_flight:
            self._busy_until = None
            return False
        began_at = self._ledger.clock.monotonic()
        finished_now = engine.step()
        now = self._ledger.clock.monotonic()
        self.tally.busy_s += now - (began_at if self._busy_until is None else self._busy_until)
        self._busy_until = now
        self._gpu_s_each += (now - began_at) * engine.info.num_gpus / len(self._in_flight)
        for finished in finished_now:
            item = self._in_flight.get(finished.key)
            if item is not None and isinstance(finished.outcome, Completion):
                self.tally.request_s.add(now - item.added_at)
            self._settle(finished)
        return True

    def _work(self) -> None:
        """The loop itself."""
        while not self._is_over():
            try:
                is_busy = self.turn(self._engine)
            except EngineDead as error:
                self._engine = self._replace(self._engine, error)
                continue
            if not is_busy:
                with self._changed:
                    if not len(self._window) or self._fills_since is not None or self._is_held_back:
                        self._changed.wait(IDLE_WAIT_S)

    def run_alone(self, until: Callable[[], bool] = lambda: False) -> BatchRecord | None:
        """`run` without a thread: everything in turn, on the ledger's clock. For simulations and virtual time."""
        self._engine = self._seat.build()
        try:
            while not self._is_over() and not until():
                try:
                    while self._feeder.tick():
                        pass
                    if not self.turn(self._engine):
                        self._ledger.clock.sleep(IDLE_WAIT_S)
                    self._keeper.tick()
                    self._finisher.tick()
                except EngineDead as error:
                    self._engine = self._replace(self._engine, error)
                except StoreUnavailable as error:
                    log.warning("store.unavailable", error=str(error))
                    self._ledger.clock.sleep(STORE_RETRY_S)
            self._keeper.release_all()
            self._seat.count_steps(self._engine)
        finally:
            self._engine.close()
        return self._finisher.ended.get(self._options.only or "")

    def stop(self) -> None:
        """Start nothing more, finish what is in flight, checkpoint, release. From any thread or a signal handler."""
        self._feeder.is_stopped = True
        self._stop.set()

    def stop_now(self) -> None:
        """Do not even finish what is in flight."""
        self.stop()
        self._stop_now.set()

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def num_prefetched(self) -> int:
        return len(self._window)

    @property
    def is_building(self) -> bool:
        """There is no engine now: the first one loads, or one died and the next one does."""
        return self._seat.is_empty and not self._stop.is_set()

    @property
    def is_stopping(self) -> bool:
        return self._stop.is_set()

    @property
    def is_idle(self) -> bool:
        """An engine is ready, and there is nothing for it to do."""
        return not (self.is_building or self._works or self._in_flight or len(self._window))

    @property
    def is_drained(self) -> bool:
        """Idle, and no shard of this pool is left in any batch that was open at the last look."""
        # In this order: a shard that is claimed in between is seen by one of the later looks.
        return self._claims.is_settled and not self._feeder.is_claiming and self.is_idle

    def shards_held(self, num_max: int) -> tuple[str, ...]:
        """As `batch_id/n`."""
        works = list(self._works)[:num_max]
        return tuple(f"{work.held.batch.batch_id}/{work.held.record.n}" for work in works)

    def engine_stats(self) -> EngineStats:
        """Over all engines since the start. From any thread, a moment old."""
        return self._seat.stats()

    @property
    def down_s(self) -> float:
        """For how long the endpoint has been down; 0 while it is up, or only pauses for a moment."""
        return self._seat.down_s

    def _is_over(self) -> bool:
        if self._failure is not None or self._stop_now.is_set():
            return True
        if self._options.only is not None and self._options.only in self._finisher.ended:
            return True
        return self._stop.is_set() and (not self._in_flight or self._is_grace_over())

    def _is_grace_over(self) -> bool:
        now = self._ledger.clock.monotonic()
        self._stopped_at = now if self._stopped_at is None else self._stopped_at
        return now - self._stopped_at >= self._ledger.limits.grace_s or self.down_s > 0

    def _fill(self, engine: Engine) -> None:
        assert self.info is not None
        room = self.info.max_in_flight - len(self._in_flight)
        if room <= 0 or self._stop.is_set() or not len(self._window) or self._waits_to_fill(self.info.num_slots):
            return
        with self._changed:
            items = self._window.pop(room, len(self._in_flight))
        now, ttl_s = self._ledger.clock.monotonic(), self._ledger.limits.lease_ttl_s
        held_back: list[Item] = []
        if self._window.is_alone_running and not all(self._may_dispatch(item.shard, now, ttl_s) for item in items):
            with self._changed:
                self._window.push_alone(items, is_next=True)
            self._is_held_back = True
            return
        for item in items:
            if item.shard.is_dropped:
                continue
            if self._may_dispatch(item.shard, now, ttl_s):
                self._in_flight[item.key] = item
            else:
                held_back.append(item)
        self._is_held_back = bool(held_back)
        if held_back:
            with self._changed:
                self._window.push(held_back)
        # All of them count as in flight before the first is added: an engine that dies of one loses none.
        for item in items:
            if item.key in self._in_flight:
                self._add(engine, item, now)

    def _add(self, engine: Engine, item: Item, now: float) -> None:
        item.shard.has_dispatched = True
        item.added_at = now
        item.gpu_s_before = self._gpu_s_each
        if self.tally.first_dispatch_at is None:
            self.tally.first_dispatch_at = now
            log.info("engine.fed", after_ms=round((now - (self.tally.engine_ready_at or now)) * 1000, 1))
        try:
            engine.add(item.key, item.prepared)
        except InvalidRequest as error:
            self._settle(Finished(item.key, Failure(type=error.type, message=str(error))))

    def _may_dispatch(self, work: ShardWork, now: float, ttl_s: float) -> bool:
        """Not while the lease may be lost, and not before the record says so where it must."""
        if lease.must_announce(work.held.record):
            work.wants_to_announce = True
            self._keeper.wake.set()
            return False
        return work.held.may_dispatch(now, ttl_s)

    def _waits_to_fill(self, num_slots: int) -> bool:
        """An empty engine starts with full slots: a first step of a few long prompts would hold up all others."""
        if self._in_flight or self._window.has_ended or len(self._window) >= num_slots or self._feeder.is_full():
            self._fills_since = None
            return False
        now = self._ledger.clock.monotonic()
        self._fills_since = now if self._fills_since is None else self._fills_since
        return now - self._fills_since < FILL_WAIT_S_MAX

    def _settle(self, finished: Finished) -> None:
        item = self._in_flight.pop(finished.key, None)
        if item is None or item.shard.is_dropped:
            return
        outcome: Outcome | None = finished.outcome
        if item.request is not None and item.shard.fitting is not None:
            outcome = self._judge(item, item.shard.fitting, item.request, finished.outcome)
        if outcome is None:
            return
        result = encode_result(item.custom_id, outcome, self.info.model if self.info else "")
        self._count(outcome)
        usage = outcome.usage if isinstance(outcome, Completion) else Usage()
        status = "succeeded" if isinstance(outcome, Completion) else outcome.status
        if item.shard.settle(FinishedLine(item.line, status, result, usage, self._gpu_s_each - item.gpu_s_before)):
            self._keeper.wake.set()

    def _judge(self, item: Item, checks: Fitting, request: Request, outcome: Outcome) -> Outcome | None:
        """What is final; None where it goes again, because it does not fit or the engine refuses the guide."""
        if isinstance(outcome, Failure):
            if outcome.type != "invalid_request_error" or not checks.is_guided(request):
                return outcome
            self._again(item, fitting.unguided(request))
            return None
        if checks.fits(request, outcome):
            return outcome
        self._count_tokens(outcome.usage)
        if item.attempt == fitting.ATTEMPTS_MAX:
            return fitting.MISFIT
        item.attempt += 1
        self._again(item, fitting.next_try(request))
        return None

    def _again(self, item: Item, request: Request) -> None:
        """Back into the window, among the others; one that ran alone runs alone again."""
        if item.request is not request:
            item.request, item.prepared = request, self._engine.prepare(request)
        with self._changed:
            if self._window.is_alone_running:
                self._window.push_alone([item], is_next=True)
            else:
                self._window.push([item])

    def _count(self, outcome: Outcome) -> None:
        tally = self.tally
        if isinstance(outcome, Failure):
            tally.failed += 1
            return
        self._seat.has_served()
        tally.succeeded += 1
        self._count_tokens(outcome.usage)

    def _count_tokens(self, usage: Usage) -> None:
        """What was spent, also on answers that did not fit. A result's usage is that of its last attempt."""
        self.tally.input_tokens += usage.input_tokens
        self.tally.output_tokens += usage.output_tokens
        self.tally.cached_tokens += usage.cached_tokens

    def _abort_dropped(self, engine: Engine) -> None:
        if not self._dropped:
            return
        lost = [self._dropped.pop() for _ in range(len(self._dropped))]
        keys = [key for key, item in self._in_flight.items() if item.shard in lost]
        engine.abort(keys)
        for key in keys:
            del self._in_flight[key]
        with self._changed:
            self._window.drop(lambda item: item.shard.is_dropped)

    def _use(self, engine: Engine) -> None:
        self.info = engine.info
        self._feeder.use(engine.prepare, engine.info.num_slots, engine.info.max_in_flight)

    def _replace(self, engine: Engine, error: EngineDead) -> Engine:
        """Bury a dead engine, build the next, and put its requests where `crashes.judge` says.

        One that dies while the runner stops may have met what stops the runner: it blames none and has no successor.
        """
        log.error("engine.died", error=str(error), in_flight=len(self._in_flight))
        in_flight = list(self._in_flight.values())
        self._in_flight.clear()
        self._busy_until = None
        self._seat.bury(engine, error)
        if self._stop.is_set():
            return engine
        verdicts = crashes.judge(in_flight, was_alone=self._window.is_alone_running)
        for item in verdicts.guilty:
            self._in_flight[item.key] = item
            self._settle(Finished(item.key, _ENGINE_CRASH))
        with self._changed:
            self._window.push(verdicts.again)
            for group in reversed(verdicts.alone):
                self._window.push_alone(group, is_next=True)
        return self._seat.rebuild(self._stop.is_set)

    def _wind_down(self, threads: list[threading.Thread]) -> None:
        """Stop the threads, commit what is finished, put back the rest."""
        self._feeder.is_stopped = True
        self._threads_over.set()
        self._keeper.wake.set()
        with self._changed:
            self._changed.notify_all()
        for thread in threads:
            thread.join()
        self._keeper.release_all()
        self._seat.count_steps(self._engine)
        tally = self.tally
        log.info(
            "runner.ended",
            succeeded=tally.succeeded,
            errored=tally.errored,
            steps=tally.num_steps,
            full_steps=tally.num_full_steps,
            engine_deaths=tally.num_engine_deaths,
            leases_lost=tally.num_leases_lost,
        )

    def _start_threads(self) -> list[threading.Thread]:
        jobs: list[tuple[str, Callable[[], None]]] = [
            ("feeder", self._feed_forever),
            ("keeper", self._keep_forever),
            ("finisher", self._finish_forever),
        ]
        threads = [threading.Thread(target=self._guarded, args=(job,), name=name, daemon=True) for name, job in jobs]
        for thread in threads:
            thread.start()
        return threads

    def _guarded(self, job: Callable[[], None]) -> None:
        """The top of each thread: what is not expected ends the run, with its cause."""
        while not self._threads_over.is_set():
            try:
                return job()
            except StoreUnavailable as error:
                if isinstance(error, StoreFull) and self._options.only is not None:
                    self._failure = error
                    return None
                log.warning("store.unavailable", error=str(error))
                self._threads_over.wait(STORE_RETRY_S)
            except BaseException as error:  # noqa: BLE001 the run re-raises it
                self._failure = error
                return None
        return None

    def _feed_forever(self) -> None:
        while not self._threads_over.is_set():
            if not self._feeder.tick():
                with self._changed:
                    self._changed.wait(IDLE_WAIT_S)

    def _keep_forever(self) -> None:
        while not self._threads_over.is_set():
            self._keeper.wake.wait(KEEPER_WAIT_S)
            self._keeper.wake.clear()
            self._keeper.tick()

    def _finish_forever(self) -> None:
        while not self._threads_over.wait(FINISHER_WAIT_S):
            self._finisher.tick()
            damage = self._finisher.damaged.get(self._options.only or "")
            if damage is not None:
                raise BatchDamaged(damage)
