"""Runners that fail before they have done anything: when the next may be tried, and how many. Pure; starts nothing."""

WAIT_S = 30.0  # doubled with each setback in a row
WAIT_S_MAX = 900.0


class Backoff:
    """Of one pool. `now`: a monotonic clock."""

    def __init__(self) -> None:
        self._num_failed: int | None = None
        self._in_a_row = 0
        self._start_at = 0.0

    @property
    def wait_s(self) -> float:
        return min(WAIT_S_MAX, WAIT_S * 2.0 ** min(self._in_a_row - 1, 16))

    def look(self, *, num_failed: int, is_working: bool, now: float) -> int:
        """How many have failed since the last look, if that is a setback: nobody works, else it is 0.

        `num_failed`: all that are known of; fewer than before where old ones were forgotten.
        """
        num_new = 0 if self._num_failed is None else max(0, num_failed - self._num_failed)
        self._num_failed = num_failed
        if is_working:
            self._in_a_row = 0
        if is_working or not num_new:
            return 0
        self._in_a_row += 1
        self._start_at = now + self.wait_s
        return num_new

    def allowed(self, num: int, now: float) -> int:
        """Of `num` runners that are missing, those to start now: after a setback one at a time, until one works."""
        if not self._in_a_row or num <= 0:
            return max(0, num)
        if now < self._start_at:
            return 0
        self._start_at = now + self.wait_s  # also where its failure will not be seen
        return 1
