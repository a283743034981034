"""Keeps the bytes of objects that were read, and lets requests for one object share one fetch."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future

from batchfile.clock import Clock, SystemClock
from batchfile.errors import InvalidRequest

CACHE_BYTES_MAX = 16 * 1024 * 1024
FAILURE_S = 60.0  # a failure is the answer for this long
FAILURES_MAX = 10_000

Key = tuple[str, str]  # of a batch, and in it


class MediaCache:
    """Of one process, for all batches. An object is not fetched again while it stays here. Thread-safe."""

    def __init__(self, bytes_max: int = CACHE_BYTES_MAX, clock: Clock | None = None) -> None:
        self._bytes_max = bytes_max
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._objects: OrderedDict[Key, bytes] = OrderedDict()
        self._failures: OrderedDict[Key, tuple[float, InvalidRequest]] = OrderedDict()
        self._fetches: dict[Key, Future[bytes]] = {}
        self._size = 0

    def get(self, key: Key, fetch: Callable[[], bytes]) -> bytes:
        """The object, from here or from `fetch`, which one caller at a time runs for a key.

        Raises: InvalidRequest, as `fetch` did for this or an earlier caller.
        """
        with self._lock:
            data = self._objects.get(key)
            if data is not None:
                self._objects.move_to_end(key)
                return data
            until, failure = self._failures.get(key, (0.0, None))
            if failure is not None and until > self._clock.monotonic():
                raise InvalidRequest(str(failure), failure.type)
            running = self._fetches.get(key)
            if running is None:
                ours = self._fetches[key] = Future()
        if running is not None:
            try:
                return running.result()
            except InvalidRequest as error:
                raise InvalidRequest(str(error), error.type) from None
        try:
            data = fetch()
        except BaseException as error:
            self._keep_failure(key, error)
            ours.set_exception(error)
            raise
        self._keep(key, data)
        ours.set_result(data)
        return data

    def _keep(self, key: Key, data: bytes) -> None:
        with self._lock:
            del self._fetches[key]
            self._objects[key] = data
            self._size += len(data)
            while self._size > self._bytes_max:
                self._size -= len(self._objects.popitem(last=False)[1])

    def _keep_failure(self, key: Key, error: BaseException) -> None:
        with self._lock:
            del self._fetches[key]
            if isinstance(error, InvalidRequest):
                self._failures[key] = (self._clock.monotonic() + FAILURE_S, error)
                if len(self._failures) > FAILURES_MAX:
                    self._failures.popitem(last=False)
