"""Runs one runner of a fleet: opens the store and the engine, then runs `batchfile.runner` until it stops."""

import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial

import structlog

from batchfile import logs, tracing
from batchfile.engine.base import Engine
from batchfile.errors import BatchDamaged, BatchfileError, StoreError
from batchfile.inbox import outbox
from batchfile.inbox.scan import Inbox
from batchfile.ledger import keys
from batchfile.ledger.base import Ledger
from batchfile.machine.child import ChildSignals, Report, Reports, end_with_parent
from batchfile.open_ledger import open_service_ledger, wait_for_store
from batchfile.runner.runner import Runner, RunnerOptions
from batchfile.settings import load_settings
from batchfile.signals import Interrupted
from batchfile.store.metered import MeteredStore

from .heartbeat import Heartbeat, Identity
from .media import media_rules
from .metrics import RunnerCollector, counted, serving
from .options import ProgramOptions, factory_of, kind_of, pool_of

log = structlog.get_logger()

OK, FAILED = 0, 1
WATCH_S = 0.5
WATCH_JOIN_S_MAX = 10.0


class ShutdownRule:
    """Decides when a runner exits by itself: drained, or idle for `idle_exit_s` (None: never)."""

    def __init__(self, *, is_drain: bool, idle_exit_s: float | None) -> None:
        self._is_drain = is_drain
        self._idle_exit_s = idle_exit_s
        self._idle_since: float | None = None

    def is_due(self, *, is_idle: bool, is_drained: bool, now: float) -> bool:
        """Call it repeatedly. `now`: a monotonic clock."""
        if self._is_drain and is_drained:
            return True
        if not is_idle:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        if self._idle_exit_s is None or self._idle_since is None:
            return False
        return now - self._idle_since >= self._idle_exit_s


@contextmanager
def watching(runner: Runner, heartbeat: Heartbeat, rule: ShutdownRule) -> Iterator[None]:
    """Runs a thread while entered that writes heartbeats and stops the runner when that is due."""
    over = threading.Event()

    def look() -> None:
        heartbeat.tick()
        is_due = rule.is_due(is_idle=runner.is_idle, is_drained=runner.is_drained, now=time.monotonic())
        if is_due and not runner.is_stopping:
            log.info("runner.out_of_work")
            runner.stop()

    def watch() -> None:
        while not over.is_set():
            try:
                look()
            except Exception:  # the top of the thread; the runner works without it
                log.exception("watch.failed")
            over.wait(WATCH_S)

    thread = threading.Thread(target=watch, name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(WATCH_JOIN_S_MAX)
        heartbeat.leave()


def run_slot(options: ProgramOptions, slot: int) -> int:
    """0 if it was stopped or ran out of work. Raises: BatchfileError if the engine never started."""
    signals = ChildSignals()
    try:
        with signals.caught():
            end_with_parent([signal.SIGTERM])
            return _run(options, slot, signals, Reports())
    except Interrupted:
        log.info("runner.stopped_before_it_ran")
        return OK


def _run(options: ProgramOptions, slot: int, signals: ChildSignals, reports: Reports) -> int:
    settings = load_settings()
    logs.set_level(settings.log_level)
    tracing.start("batchfile-worker")
    pool = pool_of(settings, options.pool)
    kind = kind_of(pool, options)
    with ExitStack() as stack:
        if ports := options.metrics_ports(slot):  # before the store is open, so that a waiting runner is seen as alive
            stack.enter_context(serving(options.metrics_host, ports))
        ledger = wait_for_store(lambda: open_service_ledger(options.store, settings))
        store = MeteredStore(ledger.store)
        ledger = replace(ledger, store=store)
        identity = Identity(
            pool=options.pool,
            runner_id=f"{options.pool}-{secrets.token_hex(6)}",  # public, so it has no host name
            model=pool.model,
            engine=kind,
            host=socket.gethostname(),
            started_at=time.time(),
        )
        log.info("runner.starting", runner_id=identity.runner_id, engine=kind, model=pool.model, store=store.url)
        inbox = Inbox(ledger, settings.routing(), settings.schema_of, move_done=settings.inbox.move_done)
        wanted = RunnerOptions(
            runner_id=identity.runner_id,
            pool=options.pool,
            inbox=inbox,
            media_rules=partial(media_rules, settings, store.url),
        )
        factory = factory_of(pool, kind, ledger.limits.engine_stall_s, is_scraped=bool(ports))

        def build() -> Engine:
            engine = factory()
            reports.send(Report(is_ready=True))
            return engine

        runner = Runner(ledger, build, wanted)
        signals.runner, signals.grace_s = runner, ledger.limits.grace_s
        rule = ShutdownRule(is_drain=options.is_drain, idle_exit_s=options.idle_exit_s)
        stack.enter_context(counted(RunnerCollector(runner, store, options.pool, pool.model)))
        stack.enter_context(watching(runner, Heartbeat(ledger, runner, identity), rule))
        try:
            runner.run()
        except BatchfileError as error:
            if runner.info is None:
                raise
            log.error("runner.failed", error=str(error))
            return FAILED
        if options.is_drain or options.idle_exit_s is not None:
            _end_what_is_complete(ledger, options.pool, identity.runner_id)
    return OK


def _end_what_is_complete(ledger: Ledger, pool: str, runner_id: str) -> None:
    """End batches whose last shard is done: this may be the last process, so nobody else might do it."""
    with suppress(StoreError), ledger.store.hold_process_lock(runner_id):
        for entry in list(ledger.store.list(keys.queue_prefix(pool))):
            with suppress(BatchDamaged, StoreError):  # already logged by the runner
                outbox.finish(ledger, keys.queue_batch_id(entry.key), runner=runner_id)
