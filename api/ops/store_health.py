"""Does the store answer? Asked every two seconds, so that no request waits long for a store that has gone silent.

One that refuses is known at once, by whoever asks it. One that takes a question and never answers would hold every
thread of this process for a minute: after ten seconds without an answer it counts as lost, until it answers again.
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import structlog

from batchfile.errors import StoreError
from batchfile.store.base import Store

log = structlog.get_logger()

PROBE_KEY = "bell/_ready"  # whether it is there does not matter, only that the store answers
PROBE_WAIT_S = 5.0
BEAT_S = 2.0
LOST_S = 10.0


SILENT = "The store does not answer."
STUCK = "A process that does not move on has a lock of the store; the log of this service names it."


class StoreHealth:
    """For one event loop. `lost` is set while the store has not answered for `LOST_S`."""

    def __init__(self, store: Store) -> None:
        self.lost = asyncio.Event()
        self._store = store
        # A thread of its own: the others may all be waiting for the store.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store-health")
        self._question: asyncio.Future[str | None] | None = None
        self._answered_at = time.monotonic()
        self._is_stuck = False

    async def look(self) -> str | None:
        """What is wrong with it now, None: nothing. At most `PROBE_WAIT_S`.

        Requests that come meanwhile share its answer. Where only a lock is stuck, reads and most writes work,
        so the store is not lost.
        """
        if self._question is None or self._question.done():
            self._question = asyncio.get_running_loop().run_in_executor(self._thread, self._ask)
        try:
            trouble = await asyncio.wait_for(asyncio.shield(self._question), PROBE_WAIT_S)
        except TimeoutError:
            trouble = SILENT
        self._note(has_answered=trouble != SILENT)
        return trouble

    async def beat(self) -> None:
        """For ever."""
        while True:
            await self.look()
            await asyncio.sleep(BEAT_S)

    def _ask(self) -> str | None:
        try:
            self._store.head(PROBE_KEY)
        except StoreError:
            return SILENT
        try:
            self._store.check_locks()
        except StoreError as error:
            if not self._is_stuck:
                log.error("store.stuck", error=str(error))
            self._is_stuck = True
            return STUCK
        if self._is_stuck:
            log.info("store.unstuck")
        self._is_stuck = False
        return None

    def _note(self, *, has_answered: bool) -> None:
        now = time.monotonic()
        if has_answered:
            self._answered_at = now
            if self.lost.is_set():
                log.info("store.found")
            self.lost.clear()
        elif now - self._answered_at >= LOST_S and not self.lost.is_set():
            log.error("store.lost", silent_s=round(now - self._answered_at))
            self.lost.set()
