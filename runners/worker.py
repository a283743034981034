"""One runner of a fleet: settings to store to engine, then the loop of `batchfile.runner` until told to end."""

import os
import secrets
import signal
import socket
import threading
import time
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, replace
from types import FrameType, TracebackType
from typing import NoReturn, Self

import structlog

from batchfile.client.resolve import open_service_ledger
from batchfile.errors import BatchDamaged, BatchfileError, StoreError, StoreUnavailable
from batchfile.inbox import outbox
from batchfile.inbox.scan import Inbox
from batchfile.ledger import keys
from batchfile.ledger.base import Ledger
from batchfile.runner.runner import Runner, RunnerOptions
from batchfile.settings import Settings, load_settings
from batchfile.signals import hearing
from batchfile.store.metered import MeteredStore

from .heartbeat import Heartbeat, Identity
from .metrics import RunnerCollector, counted, serving
from .options import Options
from .pools import factory_of, kind_of, pool_of
from .shutdown import ShutdownRule

log = structlog.get_logger()

OK, FAILED = 0, 1
WATCH_S = 0.5
WATCH_JOIN_S_MAX = 10.0
# Once the grace is over: to commit, to release and to close the engine. Less than the supervisor's margin.
END_S_MAX = 45.0
END_NOW_S_MAX = 15.0  # the same after a second signal
# Between two tries to open a store that is down.
STORE_WAIT_S = 1.0
STORE_WAIT_S_MAX = 15.0


class Stopped(BaseException):
    """A signal came while there was no engine. BaseException: no library may swallow it."""


@dataclass(slots=True)
class Signals:
    """The first: finish what is in flight, give back the rest. The second: do not wait for it.

    The process ends by itself in time, whatever the engine does (batchfile/signals.py). `grace_s`: for what is in
    flight.
    """

    grace_s: float = 0.0
    runner: Runner | None = None
    _num: int = 0

    def caught(self) -> AbstractContextManager[None]:
        """Call it in the main thread."""
        return hearing(self._handle, self._patience_s, _end)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._num += 1
        runner = self.runner
        if runner is None or runner.is_building:
            raise Stopped
        if self._num == 1:
            runner.stop()
        else:
            runner.stop_now()

    def _patience_s(self, num: int) -> float:
        runner = self.runner
        if num == 1:
            return (0.0 if runner is None else self.grace_s) + END_S_MAX
        if runner is not None:
            runner.stop_now()
        return END_NOW_S_MAX


def _end(number: int) -> NoReturn:
    log.error("runner.ended_by_force", reason="the main thread did not respond to the signal", signal=number)
    os._exit(128 + number)


class Watch:
    """A thread beside the runner: announces it, and ends it when that is due."""

    def __init__(self, runner: Runner, announcer: Heartbeat, ending: ShutdownRule) -> None:
        self._runner = runner
        self._announcer = announcer
        self._ending = ending
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def _watch(self) -> None:
        while not self._over.is_set():
            try:
                self._look()
            except Exception:  # the top of a thread that the runner does not depend on
                log.exception("watch.failed")
            self._over.wait(WATCH_S)

    def _look(self) -> None:
        self._announcer.tick()
        runner = self._runner
        is_due = self._ending.is_due(is_idle=runner.is_idle, is_drained=runner.is_drained, now=time.monotonic())
        if is_due and not runner.is_stopping:
            log.info("runner.out_of_work")
            runner.stop()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(WATCH_JOIN_S_MAX)
        self._announcer.leave()


def run_slot(options: Options, slot: int) -> int:
    """0 where it was stopped or ran out of work. Raises: BatchfileError where it never got an engine."""
    signals = Signals()
    try:
        with signals.caught():
            _end_with_parent()
            return _run(options, slot, signals)
    except Stopped:
        log.info("runner.stopped_before_it_ran")
        return OK


def _run(options: Options, slot: int, signals: Signals) -> int:
    settings = load_settings()
    pool = pool_of(settings, options.pool)
    kind = kind_of(pool, options)
    with ExitStack() as stack:
        if ports := options.metrics_ports(slot):  # before there is a store: a runner that waits for it is alive
            stack.enter_context(serving(options.metrics_host, ports))
        ledger = _open_patiently(options.store, settings)
        store = MeteredStore(ledger.store)
        ledger = replace(ledger, store=store)
        identity = Identity(
            pool=options.pool,
            runner_id=_new_runner_id(options.pool),
            model=pool.model,
            engine=kind,
            host=socket.gethostname(),
            started_at=time.time(),
        )
        log.info("runner.starting", runner_id=identity.runner_id, engine=kind, model=pool.model, store=store.url)
        inbox = Inbox(ledger, settings.routing(), settings.schema_of, move_done=settings.inbox.move_done)
        wanted = RunnerOptions(runner_id=identity.runner_id, pool=options.pool, inbox=inbox)
        runner = Runner(ledger, factory_of(pool, kind, ledger.limits.engine_stall_s), wanted)
        signals.runner, signals.grace_s = runner, ledger.limits.grace_s
        ending = ShutdownRule(is_drain=options.is_drain, idle_exit_s=options.idle_exit_s)
        stack.enter_context(counted(RunnerCollector(runner, store, options.pool, pool.model)))
        stack.enter_context(Watch(runner, Heartbeat(ledger, runner, identity), ending))
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


def _open_patiently(url: str | None, settings: Settings) -> Ledger:
    """A store that is down is waited for. Raises: SettingsError, StoreUnfit, StoreError where waiting is no use."""
    wait_s = STORE_WAIT_S
    while True:
        try:
            return open_service_ledger(url, settings)
        except StoreUnavailable as error:
            log.warning("store.awaited", store=url or settings.store, error=str(error), again_in_s=wait_s)
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, STORE_WAIT_S_MAX)


def _end_what_is_complete(ledger: Ledger, pool: str, runner_id: str) -> None:
    """The last shard may be done for less time than its batch takes to end, and nobody may come after us."""
    with suppress(StoreError), ledger.store.hold_process_lock(runner_id):
        for marker in list(ledger.store.list(keys.queue_prefix(pool))):
            with suppress(BatchDamaged, StoreError):  # the runner has said so
                outbox.finish(ledger, keys.queue_batch_id(marker.key), runner=runner_id)


def _new_runner_id(pool: str) -> str:
    """Without the name of the machine: callers of the service see it."""
    return f"{pool}-{secrets.token_hex(6)}"


def _end_with_parent() -> None:
    """Standard input is a pipe that the supervisor holds open and never writes to: its end is the supervisor's."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        log.warning("supervisor.gone")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()
