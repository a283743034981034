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


class Pulse:
    """For one event loop. `lost` is set while the store has not answered for `LOST_S`."""

    def __init__(self, store: Store) -> None:
        self.lost = asyncio.Event()
        self._store = store
        # A thread of its own: the others may all be waiting for the store.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pulse")
        self._question: asyncio.Future[bool] | None = None
        self._answered_at = time.monotonic()

    async def look(self) -> bool:
        """Does it answer now? Whoever asks while a question is open shares its answer. At most `PROBE_WAIT_S`."""
        if self._question is None or self._question.done():
            self._question = asyncio.get_running_loop().run_in_executor(self._thread, self._ask)
        try:
            is_well = await asyncio.wait_for(asyncio.shield(self._question), PROBE_WAIT_S)
        except TimeoutError:
            is_well = False
        self._note(is_well)
        return is_well

    async def beat(self) -> None:
        """For ever."""
        while True:
            await self.look()
            await asyncio.sleep(BEAT_S)

    def _ask(self) -> bool:
        try:
            self._store.head(PROBE_KEY)
        except StoreError:
            return False
        return True

    def _note(self, is_well: bool) -> None:
        now = time.monotonic()
        if is_well:
            self._answered_at = now
            if self.lost.is_set():
                log.info("store.found")
            self.lost.clear()
        elif now - self._answered_at >= LOST_S and not self.lost.is_set():
            log.error("store.lost", silent_s=round(now - self._answered_at))
            self.lost.set()
