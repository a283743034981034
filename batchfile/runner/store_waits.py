"""What a runner does when the store answers nothing at all, or refuses what belongs to no batch: it waits. No I/O."""

import structlog

from batchfile.clock import Clock
from batchfile.errors import StoreError, StoreFull, StoreUnavailable

log = structlog.get_logger()

PAUSE_S = 1.0  # after the first refusal in a row; doubles for a refusal, not where the store does not answer
PAUSE_S_MAX = 15.0
IN_A_ROW_S = 60.0  # a refusal so long after the last pause is not in a row with it
REFUSALS_MAX = 8  # in a row, about a minute: then a local run ends and says why


class Refusals:
    """Counted for each thread by its name. `is_local`: a person waits for the run, and can do something about it.

    A runner of a fleet never ends for them: its engine is loaded, and the store opened well when it started.
    """

    def __init__(self, clock: Clock, *, is_local: bool) -> None:
        self._clock = clock
        self._is_local = is_local
        self._in_a_row: dict[str, int] = {}
        self._until: dict[str, float] = {}

    def pause_s(self, thread: str, error: StoreError) -> float:
        """How long to wait before the next try. Raises: `error` where the run is to end."""
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
