"""Coroutines for callers that are not async: an event loop in a thread of its own, so that a notebook, whose own thread
has a running loop, can wait for them as well. Knows no HTTP.
"""

import asyncio
import threading
import weakref
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, TypeVar

from batchfile.errors import BatchfileError

T = TypeVar("T")


class _Started(NamedTuple):
    loop: asyncio.AbstractEventLoop
    over: asyncio.Event


class LoopThread:
    """`resource` is entered in the loop at once, and left when this is closed, garbage-collected or at exit.

    Any number of threads may call `run`. Raises: what entering `resource` raises.
    """

    def __init__(self, resource: AbstractAsyncContextManager[object]) -> None:
        started: Future[_Started] = Future()
        thread = threading.Thread(
            target=lambda: asyncio.run(_serve(resource, started)), name="batchfile-http", daemon=True
        )
        thread.start()
        self._loop, over = started.result()
        self.close = weakref.finalize(self, _end, self._loop, over, thread)

    def run(self, asking: Coroutine[Any, Any, T]) -> T:
        """What the coroutine returns or raises. An interrupt of the caller cancels it."""
        future = self.post(asking)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def post(self, asking: Coroutine[Any, Any, T]) -> Future[T]:
        """The same without waiting for it. Raises: BatchfileError where it is closed."""
        if not self.close.alive:
            asking.close()
            raise BatchfileError("the connection is closed; connect again")
        return asyncio.run_coroutine_threadsafe(asking, self._loop)


async def _serve(resource: AbstractAsyncContextManager[object], started: Future[_Started]) -> None:
    try:
        async with resource:
            over = asyncio.Event()
            started.set_result(_Started(asyncio.get_running_loop(), over))
            await over.wait()
    except Exception as error:
        if started.done():
            raise
        started.set_exception(error)  # the caller waits for it


def _end(loop: asyncio.AbstractEventLoop, over: asyncio.Event, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(over.set)
    if thread is not threading.current_thread():  # a garbage collection may come to it there
        thread.join()
