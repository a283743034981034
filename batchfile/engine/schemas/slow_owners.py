"""Whose schemas took too long lately: theirs alone get a shorter bound, so that no other owner waits for hours."""

import threading
import time
from collections import OrderedDict, deque

SLOW_MAX = 3  # of one owner within SLOW_WINDOW_S: its next get less
SLOW_WINDOW_S = 600.0
OWNERS_KEPT = 1024  # who had slow ones last


class SlowOwners:
    """Any thread may ask and tell."""

    def __init__(self) -> None:
        self._slow_at: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def is_hurried(self, owner: str) -> bool:
        with self._lock:
            slow_at = self._slow_at.get(owner, deque())
            return len(slow_at) == SLOW_MAX and time.monotonic() - slow_at[0] < SLOW_WINDOW_S

    def note(self, owner: str) -> None:
        with self._lock:
            self._slow_at.setdefault(owner, deque(maxlen=SLOW_MAX)).append(time.monotonic())
            self._slow_at.move_to_end(owner)
            while len(self._slow_at) > OWNERS_KEPT:
                self._slow_at.popitem(last=False)
