"""What the runner takes from `threading`, for strands: switches only in virtual time, never preempts.

Put in place of the module where real threads would wait for each other (see `installed`).
"""

import queue
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import structlog

from tests.sim.world import Strand, World


class Lock:
    """Handed over in the order of asking. May be held across a switch."""

    def __init__(self) -> None:
        self._holder: Strand | None = None
        self._queue: list[Strand] = []

    def __enter__(self) -> "Lock":
        world = World.current
        me = world.strand
        assert me is not None
        while self._holder is not None:
            self._queue.append(me)
            world.park(None)
        self._holder = me
        return self

    def __exit__(self, *_: object) -> None:
        self._holder = None
        if self._queue:
            World.current.wake(self._queue.pop(0))


class Condition:
    """Nothing switches between `with` and `wait`, so it does without its lock."""

    def __init__(self, lock: Lock | None = None) -> None:
        self._waiting: list[Strand] = []

    def __enter__(self) -> "Condition":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self, timeout: float | None = None) -> None:
        world = World.current
        assert world.strand is not None
        me = world.strand
        self._waiting.append(me)
        try:
            world.park(timeout)
        finally:
            if me in self._waiting:  # else it would be woken out of a later wait
                self._waiting.remove(me)

    def notify_all(self) -> None:
        waiting, self._waiting = self._waiting, []
        for strand in waiting:
            World.current.wake(strand)


class Event:
    def __init__(self) -> None:
        self._is_set = False
        self._changed = Condition()

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        self._changed.notify_all()

    def clear(self) -> None:
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        if not self._is_set:
            self._changed.wait(timeout)
        return self._is_set


class Thread:
    def __init__(
        self, *, target: Callable[..., object], args: tuple[Any, ...] = (), name: str = "", **_: object
    ) -> None:
        self.name = name
        self._run = lambda: target(*args)
        self._strand: Strand | None = None

    def start(self) -> None:
        world = World.current
        assert world.strand is not None
        self._strand = world.spawn(world.strand.process, self._run)
        self._strand.thread = self

    def join(self, timeout: float | None = None) -> None:
        assert self._strand is not None
        World.current.join(self._strand, timeout)


class SimpleQueue:
    def __init__(self) -> None:
        self._items: deque[object] = deque()
        self._changed = Condition()

    def put(self, item: object) -> None:
        self._items.append(item)
        self._changed.notify_all()

    def get(self, timeout: float) -> object:
        """Raises: queue.Empty."""
        if not self._items:
            self._changed.wait(timeout)
        return self.get_nowait()

    def get_nowait(self) -> object:
        if not self._items:
            raise queue.Empty
        return self._items.popleft()


class Future:
    def __init__(self, do: Callable[[], object]) -> None:
        self._do = do
        self._is_done = Event()
        self._value: object = None
        self._error: Exception | None = None

    def run(self) -> None:
        try:
            self._value = self._do()
        except Exception as error:
            self._error = error
        self._is_done.set()

    def result(self) -> object:
        self._is_done.wait()
        if self._error is not None:
            raise self._error
        return self._value


class ThreadPoolExecutor:
    def __init__(self, num_threads: int, **_: object) -> None:
        self._num_free = num_threads
        self._queue = deque[Future]()

    def submit(self, do: Callable[..., object], *args: object) -> Future:
        world, call = World.current, Future(lambda: do(*args))
        assert world.strand is not None
        self._queue.append(call)
        if self._num_free:
            self._num_free -= 1
            world.spawn(world.strand.process, self._work)
        return call

    def _work(self) -> None:
        while self._queue:
            self._queue.popleft().run()
        self._num_free += 1

    def shutdown(self, *, cancel_futures: bool = False, **_: object) -> None:
        if cancel_futures:
            self._queue.clear()

    def __enter__(self) -> "ThreadPoolExecutor":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def current_thread() -> object:
    """What the strand that runs was started as."""
    strand = World.current.strand
    return strand.thread if strand is not None and strand.thread is not None else SimpleNamespace(name="main")


GREEN = SimpleNamespace(
    Lock=Lock, RLock=Lock, Condition=Condition, Event=Event, Thread=Thread, current_thread=current_thread
)

THREADED = (
    "batchfile.runner.runner",
    "batchfile.runner.state",
    "batchfile.runner.queues",
    "batchfile.ledger.status",
    "batchfile.long_work",
)
POOLED = ("api.ops.webhooks", "batchfile.ledger.parallel")

# Polls of a runner that has nothing to do, in virtual seconds: seldom enough that idle runners cost little.
WAITS = {
    "batchfile.runner.runner.IDLE_WAIT_S": 2.0,
    "batchfile.runner.runner.CHECKPOINTER_WAIT_S": 2.0,
    "batchfile.runner.runner.FINALIZER_WAIT_S": 3.0,
    "batchfile.runner.claimer.NOTIFICATION_S": 3.0,
    "batchfile.runner.claimer.QUEUE_IDLE_S": 30.0,
    "api.ops.webhooks.LOOK_S": 3.0,
}


@contextmanager
def installed(*, is_patient: bool = True) -> Iterator[None]:
    """The library's threads are strands, its log goes to the trace; its polls are few if `is_patient`."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=_ToTrace, processors=[])
    with ExitStack() as stack:
        stack.enter_context(
            patch("api.ops.webhooks.queue", SimpleNamespace(SimpleQueue=SimpleQueue, Empty=queue.Empty))
        )
        for module in POOLED:
            stack.enter_context(patch(f"{module}.ThreadPoolExecutor", ThreadPoolExecutor))
        for module in THREADED:
            stack.enter_context(patch(f"{module}.threading", GREEN))
        for name, value in WAITS.items() if is_patient else ():
            stack.enter_context(patch(name, value))
        try:
            yield
        finally:
            structlog.configure(**before)


class _ToTrace(structlog.BoundLoggerBase):
    """Says in the trace what the library logs; costs next to nothing where there is none."""

    def info(self, event: str, **values: object) -> None:
        world = World.current
        if world.trace is not None and world.strand is not None:
            said = " ".join(f"{key}={value}" for key, value in values.items())
            world.say(world.strand.process.name, f"  log {event} {said}")

    debug = warning = error = info

    def exception(self, event: str, **values: object) -> None:
        """What the library itself did not expect."""
        self.info(event, **values)
        error = sys.exc_info()[1]
        World.current.broken = World.current.broken or error
